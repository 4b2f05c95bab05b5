"""Results of a comparison: means, deviations, differences, the best of a grid; JSON and tables.

A *run* is one method trained with one seed: a dict with `metrics` (and `own_pctr`), of which every
number has a *place*, its keys joined by dots: ``metrics.cvr.auc``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..staging import staged_file
from .intervals import paired_difference

COLUMNS = {
    "CVR AUC (clicked)": "metrics.cvr.auc",
    "CTCVR AUC (all)": "metrics.ctcvr.auc",
    "CTCVR AUC (all, own pCTR)": "own_pctr.ctcvr.auc",
    "CVR log loss (clicked)": "metrics.cvr.log_loss",
    "CVR observed/expected (clicked)": "metrics.cvr.calibration",
    "CTCVR observed/expected (all)": "metrics.ctcvr.calibration",
    "pCVR AUC vs truth (all)": "metrics.truth.cvr.all.auc",
    "pCVR AUC vs truth (clicked)": "metrics.truth.cvr.clicked.auc",
    "pCVR AUC vs truth (unclicked)": "metrics.truth.cvr.unclicked.auc",
    "true/predicted mean pCVR (clicked)": "metrics.truth.cvr.clicked.calibration",
    "true/predicted mean pCVR (unclicked)": "metrics.truth.cvr.unclicked.calibration",
}
"""Columns of the Markdown table: title -> where it stands in a run."""

PAPER_TABLE = {
    "base": (66.00, 0.37, 62.07, 0.45),
    "aman": (65.21, 0.59, 63.53, 0.57),
    "oversampling": (67.18, 0.32, 63.05, 0.48),
    "unbias": (66.65, 0.28, 63.56, 0.70),
    "division": (67.56, 0.48, 63.62, 0.09),
    "esmm-ns": (68.25, 0.44, 64.44, 0.62),
    "esmm": (68.56, 0.37, 65.32, 0.49),
}
"""Table 2 of arXiv:1804.07931, public data, AUC in percent: CVR mean and deviation, CTCVR's."""

RESULTS = "results.json"
"""The results of a comparison in its directory."""

DIFFERENCES = {
    "cvr": "metrics.cvr.auc",
    "ctcvr": "metrics.ctcvr.auc",
    "truth": "metrics.truth.cvr.all.auc",
}
"""Task -> the AUC whose paired difference to BASE is reported; `truth` on synthetic logs."""


def summarize(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns mean, standard deviation (n - 1) and number of runs of every metric, by its place.

    Runs in which a metric is undefined (nan, or null as JSON has it) do not count in it.

    >>> summarize([{"metrics": {"cvr": {"auc": 0.5}}}, {"metrics": {"cvr": {"auc": 0.7}}}])
    {'metrics.cvr.auc': {'mean': 0.6, 'std': 0.141421356, 'runs': 2}}
    """
    values: dict[str, list[float]] = {}
    for run in runs:
        for group in ("metrics", "own_pctr", "valid", "pcvr_above_1"):
            for place, value in leaves(run.get(group) or {}, group):
                values.setdefault(place, []).append(value)
    return {place: _mean_and_std(found) for place, found in values.items()}


def differences(
    runs: Sequence[Mapping[str, Any]], of_base: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Returns the paired differences of AUCs to BASE's, by task of `DIFFERENCES`.

    Runs of one repeat are pairs. The test set's error stands in the run, where it was computed
    against the same repeat's BASE (`intervals.<task>.minus_base_error`); for `truth` there is none,
    and its interval holds for this test set.
    """
    base = {run["repeat"]: run for run in of_base}
    found: dict[str, Any] = {}
    for task, place in DIFFERENCES.items():
        pairs = [
            (value_at(run, place), value_at(base[run["repeat"]], place), run)
            for run in runs
            if run["repeat"] in base
        ]
        known = [
            (a - b, run)
            for a, b, run in pairs
            if a is not None and b is not None and math.isfinite(a - b)
        ]
        if not known:
            continue
        errors = [value_at(run, f"intervals.{task}.minus_base_error") for _, run in known]
        complete = [e for e in errors if e is not None]
        found[task] = paired_difference(
            [d for d, _ in known], complete if len(complete) == len(known) else None
        )
    return found


def best_of(
    members: Sequence[str], methods: Mapping[str, Mapping[str, Any]], place: str
) -> str | None:
    """Returns the member of the highest mean at a place, the first of equals; None: unknown."""
    means = {name: methods[name]["summary"].get(place, {}).get("mean") for name in members}
    known = {name: mean for name, mean in means.items() if mean is not None}
    return max(known, key=lambda name: known[name]) if known else None


def value_at(run: Mapping[str, Any], place: str) -> float | None:
    """Returns the number at a dotted place of a run, or None where there is none."""
    value: Any = run
    for key in place.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def leaves(value: Mapping[str, Any], place: str) -> list[tuple[str, float]]:
    """Returns every number inside, with its place; null as nan."""
    found: list[tuple[str, float]] = []
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            found += leaves(inner, f"{place}.{key}")
        elif inner is None or isinstance(inner, int | float):
            found.append((f"{place}.{key}", math.nan if inner is None else float(inner)))
    return found


def to_json(results: Mapping[str, Any]) -> bytes:
    """Returns results as indented JSON; nan and infinity become null."""
    return msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n"


def write(results: Mapping[str, Any], out: str | Path) -> None:
    """Writes results.json, results.md, and every number of every run as runs.csv and runs.parquet.

    The last two have the columns method, repeat, seed, metric (its place) and value. Each is
    replaced whole.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows_of(results)), schema=_schema(pa))
    files: dict[str, Callable[[Path], Any]] = {
        RESULTS: lambda path: path.write_bytes(to_json(results)),
        "results.md": lambda path: path.write_text(markdown(results), encoding="utf-8"),
        "runs.csv": lambda path: pa.csv.write_csv(table, path),
        "runs.parquet": lambda path: pa.parquet.write_table(table, path),
    }
    for name, write_into in files.items():
        with staged_file(out / name) as staged:
            write_into(staged)


def _schema(pa: Any) -> Any:
    return pa.schema(
        [
            ("method", pa.string()),
            ("repeat", pa.int32()),
            ("seed", pa.int64()),
            ("metric", pa.string()),
            ("value", pa.float64()),
        ]
    )


def rows_of(results: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Yields every number of every run: method, repeat, seed, metric, value."""
    trained = {"ctr": results["ctr_network"], **results["methods"]}
    for name, method in trained.items():
        for run in method["runs"]:
            groups = {k: run[k] for k in run if isinstance(run[k], Mapping) and k != "curves"}
            for group, inner in groups.items():
                for place, value in leaves(inner, group):
                    yield {
                        "method": name,
                        "repeat": run["repeat"],
                        "seed": run["seed"],
                        "metric": place,
                        "value": value,
                    }


def markdown(results: Mapping[str, Any]) -> str:
    """Returns the comparison in Markdown: means and deviations, then what belongs beside them.

    The first table has a row for each method (of a grid its best setting), the second every
    setting; then paired differences to BASE, and the paper's Table 2.
    """
    methods = results["methods"]
    shown = results.get("rows") or list(methods)
    titles = [
        t for t, place in COLUMNS.items() if any(place in methods[n]["summary"] for n in shown)
    ]
    rows = [["method", *titles]]
    for name in shown:
        summary = methods[name]["summary"]
        rows.append(
            [label(methods[name]), *[cell(summary.get(COLUMNS[t]), COLUMNS[t]) for t in titles]]
        )
    data = "; ".join(
        f"{name}: {d['impressions']:,} impressions, {d['clicks']:,} clicks, "
        f"{d['conversions']:,} conversions"
        for name, d in results["data"].items()
    )
    parts = [
        _table(rows),
        f"{results['protocol']}\n{data}; repeats: {results['repeats']}.\n",
        *_markdown_differences(results, shown),
        *_markdown_grids(results),
        *_markdown_steps(results),
    ]
    return "\n".join(parts)


def _markdown_differences(results: Mapping[str, Any], shown: Sequence[str]) -> list[str]:
    methods = results["methods"]
    if "base" not in methods or len(shown) < 2:
        return []
    rows = [["AUC points minus BASE (95 %)", "CVR", "CTCVR", "paper: CVR", "paper: CTCVR"]]
    for name in shown:
        if name == "base":
            continue
        found = methods[name].get("differences", {})
        printed = PAPER_TABLE.get(methods[name].get("family", name))
        base = PAPER_TABLE["base"]
        theirs = (
            ["-", "-"]
            if printed is None
            else [
                f"{printed[0] - base[0]:+.2f}",
                f"{printed[2] - base[2]:+.2f}",
            ]
        )
        cells = [difference_cell(found.get(t)) for t in ("cvr", "ctcvr")]
        rows.append([label(methods[name]), *cells, *theirs])
    return [_table(rows)]


def _markdown_grids(results: Mapping[str, Any]) -> list[str]:
    methods = results["methods"]
    grids = {f: g for f, g in results.get("families", {}).items() if len(g["members"]) > 1}
    if not grids:
        return []
    validated = any("valid.cvr.auc" in m["summary"] for m in methods.values())
    rows = [
        [
            "setting",
            "CVR AUC",
            "CTCVR AUC",
            *(["CVR AUC, held-out"] if validated else []),
            "best by",
        ]
    ]
    for family in grids.values():
        for name in family["members"]:
            summary = methods[name]["summary"]
            cells = [cell(summary.get(p), p) for p in ("metrics.cvr.auc", "metrics.ctcvr.auc")]
            if validated:
                cells.append(cell(summary.get("valid.cvr.auc"), "valid.cvr.auc"))
            best = ", ".join(by for by, winner in family["best"].items() if winner == name)
            rows.append([label(methods[name]), *cells, best or ""])
    return [_table(rows)]


def _markdown_steps(results: Mapping[str, Any]) -> list[str]:
    table = steps_table(results)
    rows = [["training", *table["heads"]]] + [[r["title"], *r["cells"]] for r in table["rows"]]
    return [_table(rows)]


def steps_table(results: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the optimizer steps of each method (of the network that gives its pCVR), as text.

    With methods at ESMM's number of steps (`catalogue.at_entire_steps`) each stands below the same
    method as it is, and their AUCs beside: what is due to the number of steps is seen there.
    """
    methods = results["methods"]
    at_steps = [name for name in methods if name.endswith("-steps")]
    shown = list(results.get("rows") or methods)
    if at_steps:
        shown = [n for n in methods if f"{n}-steps" in methods or (n in shown and n == "esmm")]
        shown = [each for n in shown for each in (n, f"{n}-steps") if each in methods]
        shown += [name for name in at_steps if name not in shown]
    places = {
        "CVR AUC": "metrics.cvr.auc",
        "CTCVR AUC": "metrics.ctcvr.auc",
        "pCVR AUC vs truth": "metrics.truth.cvr.all.auc",
        "CVR log loss": "metrics.cvr.log_loss",
    }
    if not results.get("truth_known"):
        del places["pCVR AUC vs truth"]
    rows = []
    for name in shown:
        runs, summary = methods[name]["runs"], methods[name]["summary"]
        last = [list(run["networks"].values())[-1] for run in runs]
        steps = statistics.fmean(network["steps"] for network in last)
        seen = statistics.fmean(network["impressions"] for network in last)
        rows.append(
            {
                "name": name,
                "title": label(methods[name]),
                "cells": [
                    f"{steps:,.0f}",
                    f"{seen:,.0f}",
                    *(cell(summary.get(place), place) for place in places.values() if at_steps),
                ],
            }
        )
    heads = ["optimizer steps", "impressions trained on", *(places if at_steps else ())]
    return {"heads": heads, "rows": rows, "at_steps": bool(at_steps)}


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines) + "\n"


def label(method: Mapping[str, Any]) -> str:
    """Returns a method's title with its setting, if it has one."""
    return f"{method['title']} {method['setting']}" if method.get("setting") else method["title"]


def cell(summary: Mapping[str, Any] | None, place: str) -> str:
    """Returns a metric as text: an AUC in percent, with its deviation where there is one.

    >>> cell({"mean": 0.6856, "std": 0.0037, "runs": 10}, "metrics.cvr.auc")
    '68.56 ± 0.37'
    """
    if summary is None or summary["mean"] is None:
        return "-"
    percent = 100 if place.endswith("auc") else 1
    digits = 2 if place.endswith("auc") else 4 if place.endswith("log_loss") else 3
    text = f"{summary['mean'] * percent:.{digits}f}"
    return text if summary["std"] is None else f"{text} ± {summary['std'] * percent:.{digits}f}"


def difference_cell(difference: Mapping[str, Any] | None) -> str:
    """Returns a difference of AUCs in points with its interval.

    >>> difference_cell({"mean": 0.0123, "low": -0.0011, "high": 0.0257})
    '+1.23 [-0.11, +2.57]'
    """
    if difference is None or not math.isfinite(difference["mean"]):
        return "-"
    text = f"{100 * difference['mean']:+.2f}"
    if difference["low"] is None:
        return text
    return f"{text} [{100 * difference['low']:+.2f}, {100 * difference['high']:+.2f}]"


def _mean_and_std(values: Sequence[float]) -> dict[str, Any]:
    finite = [value for value in values if math.isfinite(value)]
    return {
        "mean": rounded(statistics.fmean(finite)) if finite else None,
        "std": rounded(statistics.stdev(finite)) if len(finite) > 1 else None,
        "runs": len(finite),
    }


def rounded(value: float) -> float:
    """Returns a number with nine significant digits, as results are written."""
    return float(f"{value:.9g}")
