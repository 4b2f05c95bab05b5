"""The tables of the report: rows of text from the results of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..run.memory import size_text
from .results import PAPER_TABLE, cell, difference_cell, label

_Column = tuple[str, str, str]  # heading, place in a run, better: "high", "low" or "one"

GROUPS: tuple[tuple[str, str, tuple[_Column, ...]], ...] = (
    (
        "CVR",
        "clicked impressions",
        (
            ("AUC", "metrics.cvr.auc", "high"),
            ("log loss", "metrics.cvr.log_loss", "low"),
            ("obs/exp", "metrics.cvr.calibration", "one"),
        ),
    ),
    (
        "CTCVR",
        "all impressions",
        (
            ("AUC", "metrics.ctcvr.auc", "high"),
            ("AUC, own pCTR", "own_pctr.ctcvr.auc", "high"),
            ("log loss", "metrics.ctcvr.log_loss", "low"),
            ("obs/exp", "metrics.ctcvr.calibration", "one"),
        ),
    ),
)
TRUTH_COLUMNS: tuple[_Column, ...] = (
    ("AUC", "auc", "high"),
    ("log loss", "log_loss", "low"),
    ("true/predicted", "calibration", "one"),
    ("correlation", "correlation", "high"),
)
"""Columns of the table against the labels, in groups (title, space, columns), and of the other."""


def main_table(methods: dict[str, Any]) -> dict[str, Any]:
    """Returns heads and rows of the table against the labels, without columns nobody has."""
    kept = []
    for title, space, columns in GROUPS:
        there = [c for c in columns if any(c[1] in m["summary"] for m in methods.values())]
        if there:
            kept.append({"title": title, "space": space, "columns": there})
    rows = []
    for name, m in methods.items():
        cells = [
            {**_cell(methods, name, place, better), "first": i == 0}
            for group in kept
            for i, (_, place, better) in enumerate(group["columns"])
        ]
        rows.append({"name": name, "title": label(m), "cells": cells})
    return {"groups": kept, "rows": rows}


def beside_paper(methods: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the paper's Table 2 beside these numbers, of the families it has."""
    rows = []
    for name, m in methods.items():
        printed = PAPER_TABLE.get(m.get("family", name))
        if printed is None:
            continue
        ours = [cell(m["summary"].get(p), p) for p in ("metrics.cvr.auc", "metrics.ctcvr.auc")]
        theirs = [f"{printed[i]:.2f} ± {printed[i + 1]:.2f}" for i in (0, 2)]
        base = PAPER_TABLE["base"]
        minus = [f"{printed[i] - base[i]:+.2f}" for i in (0, 2)]
        cells = [ours[0], theirs[0], minus[0], ours[1], theirs[1], minus[1]]
        rows.append({"name": name, "title": label(m), "cells": cells})
    return rows


def difference_table(methods: dict[str, Any], tasks: dict[str, str]) -> dict[str, Any] | None:
    """Returns the table of paired differences to BASE; None where there is none."""
    rows = [
        {
            "name": name,
            "title": label(m),
            "cells": [difference_cell(m["differences"].get(task)) for task in tasks],
        }
        for name, m in methods.items()
        if m.get("differences")
    ]
    return {"heads": list(tasks.values()), "rows": rows} if rows else None


def grid_table(results: dict[str, Any]) -> dict[str, Any] | None:
    """Returns every setting of every grid, and which one each way of choosing takes."""
    methods = results["methods"]
    grids = [f for f in results.get("families", {}).values() if len(f["members"]) > 1]
    if not grids:
        return None
    places = {"CVR AUC": "metrics.cvr.auc", "CTCVR AUC": "metrics.ctcvr.auc"}
    if any("valid.cvr.auc" in m["summary"] for m in methods.values()):
        places["CVR AUC, held-out end of train"] = "valid.cvr.auc"
    places["obs/exp, clicked"] = "metrics.cvr.calibration"
    ways = {"test": "best on the test set", "valid": "best on the held-out end"}
    rows = []
    for family in grids:
        for name in family["members"]:
            summary = methods[name]["summary"]
            best = ", ".join(ways[way] for way, n in family["best"].items() if n == name)
            cells = [*(cell(summary.get(p), p) for p in places.values()), best]
            rows.append({"title": label(methods[name]), "cells": cells})
    return {"heads": list(places), "rows": rows, "select": ways[results["select"]]}


def truth_table(methods: dict[str, Any]) -> dict[str, Any]:
    """Returns the table against the truth: for each space the methods and the truth itself."""
    summary = next(iter(methods.values()))["summary"]
    spaces = []
    for space, title in (("all", "Entire space"), ("clicked", ""), ("unclicked", "")):
        head = f"metrics.truth.cvr.{space}"
        rows = [
            {
                "name": name,
                "title": label(m),
                "cells": [_cell(methods, name, f"{head}.{c[1]}", c[2]) for c in TRUTH_COLUMNS],
            }
            for name, m in methods.items()
        ]
        best = {key: summary.get(f"{head}.best_{key}") for key in ("auc", "log_loss")}
        ideal = [cell(best[key] and {**best[key], "std": None}, key) for key in best]
        cells = [{"text": text, "best": False} for text in (*ideal, "1.000", "1.000")]
        rows.append({"name": "truth", "title": "the truth itself", "cells": cells})
        spaces.append({"title": title or f"{space.capitalize()} impressions", "rows": rows})
    return {"heads": [column[0] for column in TRUTH_COLUMNS], "spaces": spaces}


def _cell(methods: dict[str, Any], name: str, place: str, better: str) -> dict[str, Any]:
    text = cell(methods[name]["summary"].get(place), place)
    return {"text": text, "best": _is_best(methods, name, place, better)}


def _is_best(methods: dict[str, Any], name: str, place: str, better: str) -> bool:
    means = {n: m["summary"].get(place, {}).get("mean") for n, m in methods.items()}
    known = {n: value for n, value in means.items() if value is not None}
    if name not in known or len(known) < 2:
        return False
    distance = {
        "high": lambda v: -v,
        "low": lambda v: v,
        "one": lambda v: abs(v - 1),
    }[better]
    return min(known, key=lambda n: distance(known[n])) == name


def training_rows(results: dict[str, Any], methods: dict[str, Any]) -> list[dict[str, Any]]:
    trained = {"CTR network": results["ctr_network"]["runs"]}
    trained |= {label(m): m["runs"] for m in methods.values()}
    rows = []
    for title, runs in trained.items():
        networks = [n for run in runs for n in run["networks"].values()]
        last = [list(run["networks"].values())[-1] for run in runs]
        rows.append(
            {
                "title": title,
                **totals(networks, len(runs)),
                "own_steps": round(sum(n["steps"] for n in last) / len(runs)),
                "memory": memory(networks),
                "effective": _effective(last),
            }
        )
    return rows


def memory(networks: Sequence[dict[str, Any]]) -> str:
    peaks = [n["peak_memory_bytes"] for n in networks if n.get("peak_memory_bytes")]
    return size_text(max(peaks)) if peaks else "-"


def _effective(networks: Sequence[dict[str, Any]]) -> str:
    """Returns the effective share of weighted impressions in percent; nothing without weights."""
    views = [n["view"] for n in networks if "effective_impressions" in n.get("view", {})]
    shares = [v["effective_impressions"] / v["impressions"] for v in views]
    return percent(sum(shares) / len(shares)) if shares else ""


def totals(networks: Sequence[dict[str, Any]], runs: int = 1) -> dict[str, Any]:
    total = {key: sum(n[key] for n in networks) for key in ("steps", "impressions", "seconds")}
    rate = ratio(total["impressions"], total["seconds"])
    return {
        "steps": round(total["steps"] / runs),
        "impressions": round(total["impressions"] / runs),
        "seconds": f"{total['seconds'] / runs:.1f}",
        "rate": "-" if rate is None else f"{rate:,.0f}",
    }


def ratio(a: float, b: float) -> float | None:
    return a / b if b else None


def percent(value: float | None) -> str:
    """Returns a share in percent with three significant digits.

    >>> percent(0.1), percent(0.0053532), percent(None)
    ('10 %', '0.535 %', '-')
    """
    return "-" if value is None else f"{100 * value:.3g} %"
