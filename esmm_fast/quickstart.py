"""quickstart: a synthetic log, prepared, BASE and ESMM compared on it, and the report."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from .comparison import report
from .comparison.experiment import compare
from .comparison.results import cell, write
from .config import Settings
from .data.dataset import Dataset
from .data.prepare_log import prepare
from .data.published import RATES
from .data.synth import synth
from .evaluation import Truth

MARKER = "quickstart.json"
"""Says that a directory was made here, so that a later quickstart may replace it."""

ENTRIES = (
    MARKER,
    "log",
    "data",
    "results.json",
    "results.md",
    "runs.csv",
    "runs.parquet",
    "report.html",
)
"""All that a quickstart writes into its directory."""

SETTINGS = Settings(batch_size=128, group_limit=8, min_count=5)
"""The defaults but for three that suit a small log.

1,024 impressions in whole groups would be less than 20 common rows a step and 200 steps in all. Ids
that occur a few times teach nothing, and most ids of a small log do. Chosen among nine by log loss
and AUC of the CTR network, BASE and ESMM on the held-out last fifth of two other training sets
(seeds 11 and 12, 200,000 impressions each), so that nothing a quickstart reports was looked at.
"""

SHOWN = (
    ("CVR AUC", "metrics.cvr.auc"),
    ("CTCVR AUC", "metrics.ctcvr.auc"),
    ("own pCTR", "own_pctr.ctcvr.auc"),
    ("all", "metrics.truth.cvr.all.auc"),
    ("clicked", "metrics.truth.cvr.clicked.auc"),
    ("unclicked", "metrics.truth.cvr.unclicked.auc"),
    ("clicked", "metrics.truth.cvr.clicked.calibration"),
    ("unclicked", "metrics.truth.cvr.unclicked.calibration"),
)
"""Columns of the table that is printed."""


def quickstart(
    out: str | Path = "quickstart",
    *,
    impressions: int = 200_000,
    test_impressions: int | None = None,
    ctr: float = 0.1,
    cvr: float = 0.1,
    seed: int = 0,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Runs the whole way on a synthetic log and returns the path of the report.

    Writes `log/` (the log and its truth), `data/{train,test}` (datasets), `results.json`,
    `results.md` and `report.html`. One repeat, with `SETTINGS`.

    Args:
        out: Directory; one that a quickstart made is replaced, any other that is not empty is
            refused.
        impressions: Of the training set.
        test_impressions: Of the test set; None means half of the training set's.
        ctr: Mean p(click); raised from the published 0.0389, so that a small log holds enough
            conversions.
        cvr: Mean p(conversion | click); raised from the published 0.00535.
        seed: Of the log and of the training.
        progress: Shows bars; where standard error is no terminal, a line now and then.
        say: Receives what is done, line by line.

    Raises:
        FileExistsError: If `out` is not empty and no quickstart made it.
    """
    out = Path(out)
    _make_room(out)
    test_impressions = max(impressions // 2, 1) if test_impressions is None else test_impressions
    parameters = {
        "impressions": impressions,
        "test_impressions": test_impressions,
        "ctr": ctr,
        "cvr": cvr,
        "seed": seed,
    }
    (out / MARKER).write_text(json.dumps(parameters) + "\n")

    started = time.perf_counter()
    say(
        f"1/4 synth: {impressions:,} + {test_impressions:,} impressions, with raised rates: "
        f"CTR {ctr:g}, CVR {cvr:g} "
        f"(published: {RATES['ctr']:.3g}, {RATES['cvr']:.3g})"
    )
    synth(
        out / "log",
        impressions,
        test_impressions,
        ctr=ctr,
        cvr=cvr,
        seed=seed,
        progress=progress and sys.stderr.isatty(),
    )
    size = sum(path.stat().st_size for path in (out / "log").iterdir())
    seconds = time.perf_counter() - started
    say(f"    {size / 1e6:,.0f} MB in {seconds:.1f} s -> {out / 'log'}")

    started = time.perf_counter()
    say("2/4 prepare: log -> datasets")
    prepare(out / "log", out=out / "data", progress=progress)
    train, test = Dataset(out / "data" / "train"), Dataset(out / "data" / "test")
    say(f"    {time.perf_counter() - started:.1f} s -> {out / 'data'}")

    say(
        "3/4 compare: BASE, ESMM, and the CTR network that both are judged with; "
        f"batch size {SETTINGS.batch_size}, ids that occur {SETTINGS.min_count} times or more"
    )
    results = compare(
        train,
        test,
        ("base", "esmm"),
        repeats=1,
        settings=msgspec.structs.replace(SETTINGS, seed=seed),
        truth=Truth.load(out / "log" / "truth_test.parquet"),
        progress=progress,
        say=lambda line: say(f"    {line}"),
    )
    results["synthetic"] = parameters
    write(results, out)

    say("4/4 report\n")
    path = report.write(results, out / "report.html")
    say(text_table(results))
    return path


def text_table(results: dict[str, Any]) -> str:
    """Returns the comparison as lines for a terminal."""
    test = results["data"]["test"]
    head = (
        f"{'':8}{'on clicked':>12}{'on all impressions':>23}"
        f"{'pCVR AUC against the true pCVR':>36}{'true / predicted mean':>26}"
    )
    names = f"{'':8}" + "".join(f"{name:>12}" for name, _ in SHOWN)
    rows = [
        f"{m['title']:8}"
        + "".join(f"{cell(m['summary'].get(place), place):>12}" for _, place in SHOWN)
        for m in results["methods"].values()
    ]
    counts = (
        f"Test set: {test['impressions']:,} impressions, {test['clicks']:,} clicks, "
        f"{test['conversions']:,} conversions. AUC in percent."
    )
    return "\n".join([head, names, *rows, "", counts, verdict(results["methods"])])


def verdict(methods: Mapping[str, Any]) -> str:
    """Returns what the CVR AUCs of BASE and ESMM say, beside the error of their difference.

    >>> found = {"mean": 0.012, "std": None, "repeats": 1, "test_error": 0.02}
    >>> verdict({"esmm": {"differences": {"cvr": found}}})
    'CVR AUC, ESMM minus BASE: +1.20 points, less than its standard error of 2.00: no finding.'
    """
    found = methods["esmm"].get("differences", {}).get("cvr", {})
    error = found.get("test_error")
    if error is None:
        return "CVR AUC, ESMM minus BASE: the test set holds too little to say."
    text = f"CVR AUC, ESMM minus BASE: {100 * found['mean']:+.2f} points, "
    if abs(found["mean"]) < error:
        return text + f"less than its standard error of {100 * error:.2f}: no finding."
    if abs(found["mean"]) < 2 * error:
        return text + f"less than twice its standard error of {100 * error:.2f}: no finding yet."
    return text + f"with a standard error of {100 * error:.2f} for the test set; seeds add to it."


def _make_room(out: Path) -> None:
    """Makes `out` an empty directory, or raises."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out}: expected a directory, got a file")
    entries = {path.name for path in out.iterdir()} if out.exists() else set()
    if entries and MARKER not in entries:
        raise FileExistsError(
            f"{out}: expected an empty directory or one that a quickstart made, got one with "
            f"{sorted(entries)[0]!r} in it; choose another with --out"
        )
    if strange := sorted(entries - set(ENTRIES)):
        raise FileExistsError(
            f"{out}: expected nothing but a quickstart's own files, got {strange[0]!r}; "
            "move it away or choose another directory with --out"
        )
    for name in entries:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    out.mkdir(parents=True, exist_ok=True)
