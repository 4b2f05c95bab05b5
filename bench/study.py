"""What the studies of quality share: a synthetic log, runs that are kept, paired tables, JSON.

A study trains variants with the same seeds on one log. A finished run is kept in `--out`, so that
the same command goes on where it was stopped; differences to a baseline are paired by seed, and
their intervals hold both the seeds and the test set (`esmm_fast.comparison.intervals`).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np
from numpy.typing import NDArray

from esmm_fast import Dataset, prepare
from esmm_fast.comparison.intervals import auc_error, paired_difference
from esmm_fast.comparison.records import Records
from esmm_fast.config import settings_before
from esmm_fast.data.synth import synth
from esmm_fast.evaluation import Predictions, Truth, task_metrics
from esmm_fast.samplers import common_rows_of

TASKS = {
    "ctr": ("CTR AUC", "metrics.ctr.auc"),
    "cvr": ("CVR AUC (clicked)", "metrics.cvr.auc"),
    "ctcvr": ("CTCVR AUC (all)", "metrics.ctcvr.auc"),
    "truth": ("pCVR AUC vs truth (all)", "metrics.truth.cvr.all.auc"),
}
"""Task -> title and the place of its AUC in a run. pCTCVR is of the model's own pCTR."""


@dataclass(frozen=True)
class Log:
    """A synthetic log: both halves, the truth of the test half, and the command that makes it."""

    train: Dataset
    test: Dataset
    truth: Truth
    parameters: dict[str, Any]

    @staticmethod
    def made(
        impressions: int, test_impressions: int, ctr: float, cvr: float, seed: int, folder: Path
    ) -> Log:
        """Returns the log of these arguments; it is made in `folder` if it is not there."""
        place = folder / f"log-{impressions}-{test_impressions}-{ctr:g}-{cvr:g}-{seed}"
        if not place.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as new:
                synth(f"{new}/log", impressions, test_impressions, ctr=ctr, cvr=cvr, seed=seed)
                prepare(f"{new}/log", f"{new}/data")
                os.replace(f"{new}/log/truth_test.parquet", f"{new}/data/truth_test.parquet")
                os.replace(f"{new}/data", place)
        train, test = Dataset(place / "train"), Dataset(place / "test")
        parameters = {
            "impressions": impressions,
            "test_impressions": test_impressions,
            "ctr": ctr,
            "cvr": cvr,
            "seed": seed,
            "conversions": int(train.labels()[:, 1].sum()),
            "test_conversions": int(test.labels()[:, 1].sum()),
        }
        return Log(train, test, Truth.load(place / "truth_test.parquet"), parameters)


class Study:
    """Runs of variants over seeds, kept as they finish, and what is found from them.

    Args:
        name: The bench file's stem; results go to ``bench/results/<name>.json``.
        log: What is trained and tested on.
        plan: Whatever else the numbers depend on.
        out: Directory that keeps finished runs.
    """

    def __init__(self, name: str, log: Log, plan: Mapping[str, Any], out: Path) -> None:
        self.name, self.log = name, log
        self.plan = {"study": name, "log": log.parameters, **plan}
        self.records = Records(out, self.plan, before={"settings": settings_before()})
        self.labels, self.clusters = log.test.labels(), common_rows_of(log.test)
        self.runs: dict[str, list[dict[str, Any]]] = {}

    def run(
        self, variant: str, seed: int, train: Callable[[], tuple[Predictions, dict[str, Any]]]
    ) -> dict[str, Any]:
        """Returns the run of a variant and a seed; `train` gives predictions and further facts."""
        key = f"{seed:03d}-{variant}"
        found: dict[str, Any] | None = self.records.record(key)
        if found is None:
            started = time.perf_counter()
            predictions, facts = train()
            found = {
                "seed": seed,
                "metrics": task_metrics(predictions, self.log.truth),
                "seconds": time.perf_counter() - started,
                **facts,
            }
            scores = {t: getattr(predictions, f"p{t}") for t in ("ctr", "cvr", "ctcvr")}
            self.records.save_arrays(key, {t: s for t, s in scores.items() if s is not None})
            found = self.records.save(key, found)
            aucs = ", ".join(f"{t} {100 * auc_of(found, t):.2f}" for t in TASKS)
            print(f"{variant}, seed {seed}: {aucs} ({found['seconds']:.0f} s)", flush=True)
        self.runs.setdefault(variant, []).append(found)
        return found

    def difference(self, variant: str, baseline: str, task: str) -> dict[str, Any]:
        """Returns the paired difference of an AUC to the baseline's, with its 95 % interval.

        For `truth` the interval holds for this test set (its labels have no noise).
        """
        pairs = list(zip(self.runs[variant], self.runs[baseline], strict=True))
        values = [auc_of(a, task) - auc_of(b, task) for a, b in pairs]
        if task == "truth":
            return paired_difference(values)
        rows = self.labels[:, 0] == 1 if task == "cvr" else np.ones(len(self.labels), bool)
        label = self.labels[rows, 0 if task == "ctr" else 1]
        errors = [
            auc_error(
                label,
                self._scores(variant, a["seed"], task)[rows],
                minus=self._scores(baseline, b["seed"], task)[rows],
                clusters=self.clusters[rows],
            )[1]
            for a, b in pairs
        ]
        return paired_difference(values, errors)

    def _scores(self, variant: str, seed: int, task: str) -> NDArray[Any]:
        arrays = self.records.arrays(f"{seed:03d}-{variant}")
        assert arrays is not None
        return arrays[task]

    def described(self, baseline: str | None) -> dict[str, Any]:
        """Returns mean and deviation of each AUC by variant, and the differences to a baseline."""
        found: dict[str, Any] = {}
        for variant, runs in self.runs.items():
            aucs = {t: [auc_of(run, t) for run in runs] for t in TASKS}
            found[variant] = {
                "auc": {
                    t: {
                        "mean": float(np.mean(v)),
                        "std": float(np.std(v, ddof=1)) if len(v) > 1 else None,
                        "least": min(v),
                        "greatest": max(v),
                    }
                    for t, v in aucs.items()
                },
                "cvr_log_loss": float(np.mean([r["metrics"]["cvr"]["log_loss"] for r in runs])),
                "seconds": float(np.median([run["seconds"] for run in runs])),
                "runs": [
                    {
                        "seed": r["seed"],
                        **{t: auc_of(r, t) for t in TASKS},
                        **{k: r[k] for k in r if k not in ("metrics", "seed")},
                    }
                    for r in runs
                ],
            }
            if baseline is not None and variant != baseline:
                found[variant]["difference"] = {
                    t: self.difference(variant, baseline, t) for t in TASKS
                }
        return found

    def finish(self, baseline: str | None, write: bool, **more: Any) -> dict[str, Any]:
        """Prints the table, and writes ``bench/results/<name>.json`` where asked; returns it."""
        content = {
            "facts": harness.facts(),
            **self.plan,
            "baseline": baseline,
            "variants": self.described(baseline),
            **more,
        }
        print(markdown(content))
        if write:
            harness.store(self.name, content)
        return content


def auc_of(run: Mapping[str, Any], task: str) -> float:
    """Returns the AUC of a task; nan where there is none."""
    value: Any = run
    for key in TASKS[task][1].split("."):
        value = None if value is None else value.get(key)
    return float("nan") if value is None else float(value)


def points(difference: Mapping[str, Any]) -> str:
    """Returns a difference of AUCs in points, with its interval."""
    text = f"{100 * difference['mean']:+.2f}"
    if difference["low"] is None:
        return text
    return f"{text} [{100 * difference['low']:+.2f}, {100 * difference['high']:+.2f}]"


def markdown(content: Mapping[str, Any], tasks: Sequence[str] = ("cvr", "ctcvr", "truth")) -> str:
    """Returns a study's table: AUC in percent, and its paired difference to the baseline."""
    variants, baseline = content["variants"], content["baseline"]
    heads = ["variant", "seeds"]
    for task in tasks:
        heads += [TASKS[task][0], *(["difference"] if baseline else [])]
    rows = [heads, ["---"] * len(heads)]
    for name, found in variants.items():
        row = [name, str(len(found["runs"]))]
        for task in tasks:
            auc = found["auc"][task]
            spread = "" if auc["std"] is None else f" ± {100 * auc['std']:.2f}"
            row.append(f"{100 * auc['mean']:.2f}{spread}")
            if baseline:
                row.append("" if name == baseline else points(found["difference"][task]))
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def parser(description: str | None, *, impressions: int, seeds: int) -> argparse.ArgumentParser:
    """Returns the options that studies share."""
    found = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    add = found.add_argument
    add("--impressions", type=int, default=impressions, help="of the training half")
    add("--test-impressions", type=int, default=impressions // 2, help="of the test half")
    add("--ctr", type=float, default=0.1)
    add("--cvr", type=float, default=0.1)
    add("--log-seed", type=int, default=1)
    add("--seeds", type=int, default=seeds, help="seeds 1, 2, ... of every variant")
    folder = Path(tempfile.gettempdir()) / f"esmm_fast_study_{os.getuid()}"
    add("--out", type=Path, default=folder, help="keeps the log and finished runs")
    add("--json", action="store_true", help="write into bench/results/")
    return found


def log_of(options: argparse.Namespace) -> Log:
    """Returns the log that the options ask for."""
    return Log.made(
        options.impressions,
        options.test_impressions,
        options.ctr,
        options.cvr,
        options.log_seed,
        options.out,
    )
