"""The HTML report of a comparison or a run: one file without outside resources."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from . import plots
from .metrics import auc_standard_error
from .results import cell, to_json

PUBLISHED = {"ctr": 1_644_256 / 42_300_135, "cvr": 8_802 / 1_644_256}
"""Rates of the public training set: clicks / impressions, conversions / clicks."""

SPACES = (
    ("CTR", "pCTR", "click", "all impressions"),
    ("CVR", "pCVR", "conversion", "clicked impressions alone: no other has this label"),
    (
        "CTCVR",
        "pCTR * pCVR",
        "click and conversion",
        "all impressions; pCTR from one separately trained CTR network, the same for every method",
    ),
    ("CTCVR, own pCTR", "pCTR * pCVR", "click and conversion", "all impressions; the model's pCTR"),
    (
        "pCVR against the truth",
        "pCVR",
        "the true pCVR, which only a synthetic log knows",
        "all impressions, and clicked and unclicked ones apart",
    ),
)
"""Task, score, label and space of each number, as the page explains them."""

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


def write(results: Mapping[str, Any], path: str | Path) -> Path:
    """Writes the report of results of `experiment.compare` or `runs.train`; returns its path."""
    path = Path(path)
    path.write_text(render(results), encoding="utf-8")
    return path


def render(results: Mapping[str, Any]) -> str:
    """Returns the report as an HTML page."""
    from jinja2 import Environment, StrictUndefined

    plain = json.loads(to_json(dict(results)))  # as results.json gives it back: nan is null
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": lambda v: f"{v:,}", "percent": _percent, "short": plots.short}
    source = resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    page = _comparison(plain) if "methods" in plain else _run(plain)
    return environment.from_string(source).render(page)


def _comparison(results: dict[str, Any]) -> dict[str, Any]:
    methods = results["methods"]
    titles = [m["title"] for m in methods.values()]
    synthetic = results.get("synthetic")
    truth = bool(results["truth_known"])
    figures = {
        "roc": plots.roc(methods),
        "calibration": plots.calibration(methods),
        "distribution": plots.distribution(methods),
        "losses": plots.losses(_loss_curves(results)),
        "bias": plots.selection_bias(methods) if truth else None,
        "dots": plots.dots(methods, _dots_of(results)) if results["repeats"] > 1 else None,
    }
    return {
        "title": f"{_listed(titles)} on {'a synthetic log' if synthetic else 'your log'}",
        "subtitle": _subtitle(results),
        "tiles": _tiles(results["data"]),
        "rates_note": _rates_note(synthetic, results["data"]["train"]),
        "table": _table(methods),
        "truth_table": _truth_table(methods) if truth else None,
        "bias": _bias(methods) if truth else None,
        "noise": _noise(methods),
        "own_note": _own_note(results),
        "steps_note": _steps_note(results),
        "figures": figures,
        "colours": plots.colours(methods),
        "methods": methods,
        "spaces": SPACES if truth else SPACES[:-1],
        "training": _training(results),
        "protocol": results["protocol"],
        "facts": _settings(results),
        "repeats": results["repeats"],
    }


def _run(results: dict[str, Any]) -> dict[str, Any]:
    """Returns the page of a training run: no comparison, one model's own numbers."""
    tasks = [
        {"task": task.upper(), **results["valid"][task]}
        for task in ("ctr", "cvr", "ctcvr")
        if task in results.get("valid", {})
    ]
    curves = {name: network["loss_curve"] for name, network in results["networks"].items()}
    return {
        "title": f"A run of {results['title']}",
        "subtitle": f"esmm_fast {results['esmm_fast']} · {_when(results)}",
        "tiles": _tiles(results["data"]),
        "tasks": tasks,
        "figures": {"losses": plots.losses(curves)},
        "training": [
            {"title": name, **_totals([network])} for name, network in results["networks"].items()
        ],
        "facts": _flat({**results["config"], "machine": results["machine"]}),
    }


def _subtitle(results: dict[str, Any]) -> str:
    repeats = results["repeats"]
    times = "1 repeat" if repeats == 1 else f"{repeats} repeats, mean ± standard deviation"
    return f"{times} · esmm_fast {results['esmm_fast']} · {_when(results)}"


def _when(results: dict[str, Any]) -> str:
    return str(results["made"])[:16].replace("T", " ")


def _tiles(data: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "title": {"train": "Training set", "test": "Test set", "valid": "Validation set"}[name],
            **counts,
            "ctr": _ratio(counts["clicks"], counts["impressions"]),
            "cvr": _ratio(counts["conversions"], counts["clicks"]),
        }
        for name, counts in data.items()
    ]


def _rates_note(synthetic: dict[str, Any] | None, train: dict[str, Any]) -> str | None:
    """Returns the sentence on rates that differ from the public set's, where they were chosen."""
    if synthetic is None:
        return None
    asked = {name: synthetic.get(name) for name in ("ctr", "cvr")}
    if not any(v is not None and v > 1.2 * PUBLISHED[name] for name, v in asked.items()):
        return None
    few = train["impressions"] * PUBLISHED["ctr"] * PUBLISHED["cvr"]
    return (
        f"The rates of this log are raised: asked for were CTR {_percent(asked['ctr'])} and CVR "
        f"{_percent(asked['cvr'])} of clicks, the public Ali-CCP training set has "
        f"{_percent(PUBLISHED['ctr'])} and {_percent(PUBLISHED['cvr'])}. At the published rates "
        f"{train['impressions']:,} impressions would hold about {few:,.0f} conversions, too few to "
        "tell methods apart."
    )


def _table(methods: dict[str, Any]) -> dict[str, Any]:
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
        rows.append({"name": name, "title": m["title"], "cells": cells})
    return {"groups": kept, "rows": rows}


def _truth_table(methods: dict[str, Any]) -> dict[str, Any]:
    """Returns the table against the truth: for each space the methods and the truth itself."""
    summary = next(iter(methods.values()))["summary"]
    spaces = []
    for space, title in (("all", "Entire space"), ("clicked", ""), ("unclicked", "")):
        head = f"metrics.truth.cvr.{space}"
        rows = [
            {
                "name": name,
                "title": m["title"],
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


def _bias(methods: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns mean true and mean predicted pCVR by space, of the first repeat, for the bars."""
    first = next(iter(methods.values()))["curves"]["truth"]
    means = [
        value
        for m in methods.values()
        for s in m["curves"]["truth"].values()
        for value in (s["mean_true"], s["mean_predicted"])
    ]
    rows = []
    for space, truth in first.items():
        bars = [{"title": "truth", "name": "truth", "value": truth["mean_true"]}]
        bars += [
            {"title": m["title"], "name": n, "value": m["curves"]["truth"][space]["mean_predicted"]}
            for n, m in methods.items()
        ]
        for bar in bars:
            bar["width"] = 100 * bar["value"] / max(means)
            bar["off"] = _ratio(bar["value"], truth["mean_true"])
        rows.append({"space": space, "bars": bars})
    return rows


def _noise(methods: dict[str, Any]) -> str | None:
    """Returns the sentence on how far the test set alone lets a CVR AUC be known."""
    metrics = next(iter(methods.values()))["runs"][0]["metrics"].get("cvr")
    if not metrics or metrics["auc"] is None:
        return None
    positives = metrics["positives"]
    error = auc_standard_error(metrics["auc"], positives, metrics["impressions"] - positives)
    return (
        f"The CVR AUC rests on {positives:,.0f} conversions among {metrics['impressions']:,} "
        "clicked test impressions: the draw of the test set alone gives one AUC a standard error "
        f"of about {100 * error:.1f} points (Hanley-McNeil). Methods share the test set, so their "
        "difference is known better than that, but a small one is still no finding."
    )


def _own_note(results: dict[str, Any]) -> str:
    ctr = cell(results["ctr_network"]["summary"].get("metrics.ctr.auc"), "metrics.ctr.auc")
    own = {
        m["title"]: cell(m["summary"]["own_pctr.ctr.auc"], "own_pctr.ctr.auc")
        for m in results["methods"].values()
        if "own_pctr.ctr.auc" in m["summary"]
    }
    others = "".join(f"; of {title}'s own pCTR {auc}" for title, auc in own.items())
    return f"CTR AUC over all impressions, in percent: of the separate CTR network {ctr}{others}."


def _steps_note(results: dict[str, Any]) -> str | None:
    """Returns the sentence on methods of unequal numbers of steps, where they are."""
    steps = {row["title"]: row["steps"] for row in _training(results)[1:]}
    if max(steps.values()) < 2 * min(steps.values()):
        return None
    return (
        "Optimizer steps: "
        + ", ".join(f"{title} {count:,}" for title, count in steps.items())
        + ". A method that is trained on clicked impressions alone takes fewer steps in an epoch, "
        "so a part of the difference is less training rather than selection bias."
    )


def _dots_of(results: dict[str, Any]) -> dict[str, str]:
    places = {"CVR, clicked": "metrics.cvr.auc", "CTCVR, all": "metrics.ctcvr.auc"}
    if results["truth_known"]:
        places["pCVR against the truth, all"] = "metrics.truth.cvr.all.auc"
    return places


def _loss_curves(results: dict[str, Any]) -> dict[str, Any]:
    curves = {"CTR network": _first_curve(results["ctr_network"])}
    return curves | {m["title"]: _first_curve(m) for m in results["methods"].values()}


def _first_curve(trained: dict[str, Any]) -> dict[str, Any]:
    return next(iter(trained["runs"][0]["networks"].values()))["loss_curve"]


def _training(results: dict[str, Any]) -> list[dict[str, Any]]:
    trained = {"CTR network": results["ctr_network"]["runs"]}
    trained |= {m["title"]: m["runs"] for m in results["methods"].values()}
    return [
        {
            "title": title,
            **_totals([n for run in runs for n in run["networks"].values()], len(runs)),
        }
        for title, runs in trained.items()
    ]


def _totals(networks: Sequence[dict[str, Any]], runs: int = 1) -> dict[str, Any]:
    total = {key: sum(n[key] for n in networks) for key in ("steps", "impressions", "seconds")}
    rate = _ratio(total["impressions"], total["seconds"])
    return {
        "steps": round(total["steps"] / runs),
        "impressions": round(total["impressions"] / runs),
        "seconds": f"{total['seconds'] / runs:.1f}",
        "rate": "-" if rate is None else f"{rate:,.0f}",
    }


def _settings(results: dict[str, Any]) -> dict[str, Any]:
    known = results.get("synthetic") or {}
    synthetic = {key: v for key, v in known.items() if isinstance(v, str | int | float)}
    return _flat(
        {
            **results["settings"],
            "data": {name: counts["path"] for name, counts in results["data"].items()},
            "synthetic log": synthetic,
            "machine": results["machine"],
        }
    )


def _flat(value: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= _flat(inner, f"{before}{key}.")
        else:
            flat[before + key] = (
                ", ".join(map(str, inner))
                if isinstance(inner, list)
                else "-"
                if inner is None
                else inner
            )
    return flat


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _ratio(a: float, b: float) -> float | None:
    return a / b if b else None


def _percent(value: float | None) -> str:
    """Returns a share in percent with three significant digits.

    >>> _percent(0.1), _percent(0.0053532), _percent(None)
    ('10 %', '0.535 %', '-')
    """
    return "-" if value is None else f"{100 * value:.3g} %"


def load(path: str | Path) -> dict[str, Any]:
    """Returns the results of a results.json."""
    content: dict[str, Any] = msgspec.json.decode(Path(path).read_bytes())
    return content
