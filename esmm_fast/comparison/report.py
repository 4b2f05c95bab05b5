"""The HTML report of a comparison or a run: one file without outside resources."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ..comparison import plots
from ..data.published import RATES
from ..metrics import auc_standard_error
from ..staging import staged_file
from .report_tables import (
    beside_paper,
    difference_table,
    grid_table,
    main_table,
    memory,
    percent,
    ratio,
    totals,
    training_rows,
    truth_table,
)
from .results import cell, label, steps_table, to_json

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


ONE_REPEAT_NOTE = (
    "One repeat: the mean prediction of one training is one draw, and another seed gives another; "
    "how far apart they lie, only repeats show."
)
"""What stands beside means of a single training."""


def write(results: Mapping[str, Any], path: str | Path) -> Path:
    """Writes the report of results of `experiment.compare` or `runs.train`; returns its path."""
    path = Path(path)
    page = render(results)
    with staged_file(path) as staged:
        staged.write_text(page, encoding="utf-8")
    return path


def render(results: Mapping[str, Any]) -> str:
    """Returns the report as an HTML page."""
    from jinja2 import Environment, StrictUndefined

    plain = json.loads(to_json(dict(results)))  # as results.json gives it back: nan is null
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": lambda v: f"{v:,}", "percent": percent, "short": plots.short}
    source = resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    page = _comparison(plain) if "methods" in plain else _run(plain)
    return environment.from_string(source).render(page)


def _comparison(results: dict[str, Any]) -> dict[str, Any]:
    every = results["methods"]
    methods = {name: every[name] for name in results.get("rows") or every}
    synthetic = results.get("synthetic")
    truth = bool(results["truth_known"])
    tasks = {"cvr": "CVR, clicked", "ctcvr": "CTCVR, all"}
    if truth:
        tasks["truth"] = "pCVR against truth, all"
    compared = {name: m for name, m in methods.items() if m.get("differences")}
    shares = results.get("shares")
    figures = {
        "roc": plots.roc(methods),
        "calibration": plots.calibration(methods),
        "distribution": plots.distribution(methods),
        "losses": plots.losses(_loss_curves(results, methods)),
        "bias": plots.selection_bias(methods) if truth else None,
        "dots": plots.dots(methods, _dots_of(results)) if results["repeats"] > 1 else None,
        "differences": plots.differences(methods, tasks) if compared else None,
        "shares": plots.shares(shares, tasks) if shares else None,
    }
    titles = [m["title"] for m in methods.values()]
    at_steps = steps_table(results)
    listed = _listed(titles) if len(titles) < 4 else f"{len(titles)} methods"
    return {
        "title": f"{listed} on {'a synthetic log' if synthetic else 'your log'}",
        "subtitle": _subtitle(results),
        "command": results.get("command"),
        "tiles": _tiles(results["data"]),
        "rates_note": _rates_note(synthetic, results["data"]["train"]),
        "table": main_table(methods),
        "paper": beside_paper(methods),
        "differences": difference_table(methods, tasks),
        "grids": grid_table(results),
        "at_steps": at_steps if at_steps["at_steps"] else None,
        "shares": shares,
        "above_1": _above_1(methods),
        "truth_table": truth_table(methods) if truth else None,
        "bias": _bias(methods) if truth else None,
        "noise": _noise(methods),
        "own_note": _own_note(results, methods),
        "steps_note": _steps_note(results, methods),
        "one_repeat_note": ONE_REPEAT_NOTE,
        "figures": figures,
        "colours": plots.colours(methods),
        "methods": methods,
        "spaces": SPACES if truth else SPACES[:-1],
        "training": training_rows(results, every),
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
    stages = results.get("valid", {}).get("stages", {})
    tasks += [{"task": name, **metrics} for name, metrics in stages.items()]
    curves = {name: network["loss_curve"] for name, network in results["networks"].items()}
    return {
        "title": f"A run of {results['title']}",
        "subtitle": f"esmm_fast {results['esmm_fast']} · {_when(results)}",
        "tiles": _tiles(results["data"]),
        "tasks": tasks,
        "stages": bool(stages),
        "figures": {"losses": plots.losses(curves)},
        "training": [
            {"title": name, **totals([network]), "memory": memory([network]), "effective": ""}
            for name, network in results["networks"].items()
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
            "ctr": ratio(counts["clicks"], counts["impressions"]),
            "cvr": ratio(counts["conversions"], counts["clicks"]),
        }
        for name, counts in data.items()
    ]


def _rates_note(synthetic: dict[str, Any] | None, train: dict[str, Any]) -> str | None:
    """Returns the sentence on rates that differ from the public set's, where they were chosen."""
    if synthetic is None:
        return None
    asked = {name: synthetic.get(name) for name in ("ctr", "cvr")}
    if not any(v is not None and v > 1.2 * RATES[name] for name, v in asked.items()):
        return None
    few = train["impressions"] * RATES["ctr"] * RATES["cvr"]
    return (
        f"The rates of this log are raised: asked for were CTR {percent(asked['ctr'])} and CVR "
        f"{percent(asked['cvr'])} of clicks, the public Ali-CCP training set has "
        f"{percent(RATES['ctr'])} and {percent(RATES['cvr'])}. At the published rates "
        f"{train['impressions']:,} impressions would hold about {few:,.0f} conversions, too few to "
        "tell methods apart."
    )


def _above_1(methods: dict[str, Any]) -> str | None:
    """Returns the sentence on how often a method's pCVR exceeds 1 (DIVISION's can)."""
    found = {}
    for m in methods.values():
        every, of_clicked = (
            m["summary"].get(f"pcvr_above_1.{space}", {}).get("mean")
            for space in ("all", "clicked")
        )
        if every or m.get("family") == "division":
            found[label(m)] = f"{percent(every)} of all and {percent(of_clicked)} of clicked"
    if not found:
        return None
    return (
        "pCVR above 1: " + "; ".join(f"{t}, {v} test impressions" for t, v in found.items()) + "."
    )


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
            {"title": label(m), "name": n, "value": m["curves"]["truth"][space]["mean_predicted"]}
            for n, m in methods.items()
        ]
        for bar in bars:
            bar["width"] = 100 * bar["value"] / max(means)
            bar["off"] = ratio(bar["value"], truth["mean_true"])
        rows.append({"space": space, "bars": bars})
    return rows


def _noise(methods: dict[str, Any]) -> str | None:
    """Returns the sentence on how far the test set alone lets a CVR AUC be known."""
    run = next(iter(methods.values()))["runs"][0]
    metrics = run["metrics"].get("cvr")
    if not metrics or metrics["auc"] is None:
        return None
    positives = metrics["positives"]
    error = run.get("intervals", {}).get("cvr", {}).get("auc_error")
    how = "DeLong, impressions of one common row drawn together"
    if error is None:
        error = auc_standard_error(metrics["auc"], positives, metrics["impressions"] - positives)
        how = "Hanley-McNeil"
    return (
        f"The CVR AUC rests on {positives:,.0f} conversions among {metrics['impressions']:,} "
        "clicked test impressions: the draw of the test set alone gives one AUC a standard error "
        f"of about {100 * error:.1f} points ({how}). Methods share the test set, so their "
        "difference is known better than that, but a small one is still no finding."
    )


def _own_note(results: dict[str, Any], methods: dict[str, Any]) -> str:
    ctr = cell(results["ctr_network"]["summary"].get("metrics.ctr.auc"), "metrics.ctr.auc")
    own = {
        m["title"]: cell(m["summary"]["own_pctr.ctr.auc"], "own_pctr.ctr.auc")
        for m in methods.values()
        if "own_pctr.ctr.auc" in m["summary"]
    }
    others = "".join(f"; of {title}'s own pCTR {auc}" for title, auc in own.items())
    return f"CTR AUC over all impressions, in percent: of the separate CTR network {ctr}{others}."


def _steps_note(results: dict[str, Any], methods: dict[str, Any]) -> str | None:
    """Returns the sentence on methods of unequal numbers of steps, where they are."""
    steps = {row["title"]: row["own_steps"] for row in training_rows(results, methods)[1:]}
    if max(steps.values()) < 2 * min(steps.values()):
        return None
    return (
        "Optimizer steps: "
        + ", ".join(f"{title} {count:,}" for title, count in steps.items())
        + ". A method that is trained on clicked impressions alone takes fewer steps in an epoch, "
        "so a part of a difference may come of the number of steps, not of selection bias."
    )


def _dots_of(results: dict[str, Any]) -> dict[str, str]:
    places = {"CVR, clicked": "metrics.cvr.auc", "CTCVR, all": "metrics.ctcvr.auc"}
    if results["truth_known"]:
        places["pCVR against truth, all"] = "metrics.truth.cvr.all.auc"
    return places


def _loss_curves(results: dict[str, Any], methods: dict[str, Any]) -> dict[str, Any]:
    curves = {"CTR network": _first_curve(results["ctr_network"])}
    return curves | {label(m): _first_curve(m) for m in methods.values()}


def _first_curve(trained: dict[str, Any]) -> dict[str, Any]:
    """Returns the loss curve of the first repeat; of several networks that of the last."""
    curve: dict[str, Any] = list(trained["runs"][0]["networks"].values())[-1]["loss_curve"]
    return curve


def _settings(results: dict[str, Any]) -> dict[str, Any]:
    known = results.get("synthetic") or {}
    synthetic = {key: v for key, v in known.items() if isinstance(v, str | int | float)}
    return _flat(
        {
            **results["settings"],
            **{key: results[key] for key in ("holdout", "select") if key in results},
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
