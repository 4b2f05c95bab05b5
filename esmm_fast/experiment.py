"""compare: several methods on one training and one test set, by the protocol of the paper.

CVR task: AUC of pCVR over clicked test impressions. CTCVR task: AUC of pCTR * pCVR over all test
impressions, where pCTR comes, for every method, from one separately trained CTR network per repeat.
A model's own pCTR is reported apart. Source: arXiv:1804.07931, sections 3.1 to 3.3.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from . import __version__, metrics
from .config import Settings
from .dataset import Dataset
from .methods import CTR, METHODS, Method, by_name, fit_method
from .runs import check_same_fields, counts, machine, network_facts, now
from .train import Predictions, Truth, task_metrics
from .vocabulary import Vocabulary

PROTOCOL = (
    "CVR: AUC of pCVR over clicked test impressions. CTCVR: AUC of pCTR * pCVR over all test "
    "impressions, pCTR from one separately trained CTR network per repeat, the same for every "
    "method. The vocabulary is made from the training set."
)

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


def compare(
    train: Dataset,
    test: Dataset,
    methods: Sequence[str] = ("base", "esmm"),
    *,
    repeats: int = 10,
    settings: Settings | None = None,
    truth: Truth | None = None,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Returns the results of a comparison: what was run, every run's metrics, mean and deviation.

    Args:
        train: Training set; the vocabulary is made from it.
        test: Test set.
        methods: Names of `methods.METHODS`.
        repeats: Times that everything is trained anew, with the seeds `settings.seed + repeat`.
        settings: Of every network; None means the defaults.
        truth: The true probabilities of the test impressions, where they are known.
        progress: Shows bars.
        say: Receives one line for each finished training.

    Returns:
        A dict of plain values, as `write` saves it: `protocol`, `settings`, `data`, `repeats`,
        `ctr_network.runs` and `methods.<name>.{title, ..., runs, summary, curves}`. `summary` has
        for each metric its `mean`, `std` (n - 1; null for one run) and `runs`; `curves` are those
        of the first repeat.

    Raises:
        ValueError: For an unknown or repeated method, or sets of different fields.
    """
    settings = settings or Settings()
    if not methods or len(set(methods)) != len(methods):
        raise ValueError(f"methods: expected some names, each once, got {list(methods)}")
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {repeats}")
    chosen = [by_name(name, METHODS) for name in methods]
    check_same_fields(train.schema, test.schema, train.path, test.path)

    vocabulary = Vocabulary.from_dataset(train, min_count=settings.min_count)
    say(f"vocabulary: {sum(vocabulary.sized(train.schema).table_rows.values()):,} table rows")
    ctr_runs: list[dict[str, Any]] = []
    by_method: dict[str, list[dict[str, Any]]] = {m.name: [] for m in chosen}
    curves: dict[str, Any] = {}

    def run(method: Method, repeat: int) -> tuple[Predictions, dict[str, Any]]:
        seed = settings.seed + repeat
        trained = fit_method(method, train, vocabulary, settings, seed=seed, progress=progress)
        facts = {"repeat": repeat, "seed": seed, "networks": network_facts(trained)}
        seconds = sum(history.seconds for history in trained.histories.values())
        seen = sum(history.impressions for history in trained.histories.values())
        say(
            f"repeat {repeat + 1}/{repeats}, {method.title}: {trained.steps:,} steps, "
            f"{seen:,} impressions in {seconds:.1f} s ({seen / max(seconds, 1e-9):,.0f}/s)"
        )
        return trained.predict(test, vocabulary, settings, progress=progress), facts

    for repeat in range(repeats):
        ctr, facts = run(CTR, repeat)
        if ctr.pctr is None:
            raise RuntimeError("the CTR network gives no pctr")
        ctr_runs.append({**facts, "metrics": task_metrics(ctr, truth)})
        for method in chosen:
            own, facts = run(method, repeat)
            judged = own.with_pctr(ctr.pctr)
            result = task_metrics(judged, truth)
            facts["metrics"] = {k: v for k, v in result.items() if k != "ctr"}
            if own.pctr is not None:
                with_own = task_metrics(own)
                facts["own_pctr"] = {task: with_own[task] for task in ("ctr", "ctcvr")}
            by_method[method.name].append(facts)
            if repeat == 0:
                curves[method.name] = curves_of(judged, truth)

    return {
        "format": "esmm_fast comparison",
        "version": 1,
        "esmm_fast": __version__,
        "made": now(),
        "machine": machine(),
        "protocol": PROTOCOL,
        "settings": msgspec.to_builtins(settings),
        "repeats": repeats,
        "data": {"train": counts(train), "test": counts(test)},
        "truth_known": truth is not None,
        "ctr_network": {"runs": ctr_runs, "summary": summarize(ctr_runs)},
        "methods": {
            m.name: {
                "title": m.title,
                "formula": m.formula,
                "source": m.source,
                "target": m.target,
                "runs": by_method[m.name],
                "summary": summarize(by_method[m.name]),
                "curves": curves[m.name],
            }
            for m in chosen
        },
    }


def summarize(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns mean, standard deviation (n - 1) and number of runs of every metric, by its place.

    Runs in which a metric is undefined (nan) do not count in it.

    >>> summarize([{"metrics": {"cvr": {"auc": 0.5}}}, {"metrics": {"cvr": {"auc": 0.7}}}])
    {'metrics.cvr.auc': {'mean': 0.6, 'std': 0.141421356, 'runs': 2}}
    """
    values: dict[str, list[float]] = {}
    for run in runs:
        for group in ("metrics", "own_pctr"):
            for place, value in _leaves(run.get(group, {}), group):
                values.setdefault(place, []).append(value)
    return {place: _mean_and_std(found) for place, found in values.items()}


def curves_of(predictions: Predictions, truth: Truth | None) -> dict[str, Any]:
    """Returns what the report draws: ROC, calibration, and distributions of pCVR, as plain lists.

    `truth` holds, for clicked and unclicked impressions apart, the calibration curve of pCVR
    against the true pCVR; `distribution` the shares of impressions over log10(pCVR).
    """
    clicked, labels = predictions.clicked, predictions.labels
    pcvr, pctcvr = predictions.pcvr, predictions.pctcvr
    if pcvr is None or pctcvr is None:
        raise ValueError("predictions: expected pcvr and pctcvr, got none")
    edges = np.linspace(-6, 0, 121)
    result: dict[str, Any] = {
        "roc": {
            "cvr": _lists(metrics.roc_curve(labels[clicked, 1], pcvr[clicked])),
            "ctcvr": _lists(metrics.roc_curve(labels[:, 1], pctcvr)),
        },
        "calibration": {
            "cvr": _lists(metrics.calibration_curve(labels[clicked, 1], pcvr[clicked], 10)),
            "ctcvr": _lists(metrics.calibration_curve(labels[:, 1], pctcvr, 10)),
        },
        "distribution": {
            "log10_edges": edges.tolist(),
            "clicked": _shares(pcvr[clicked], edges),
            "unclicked": _shares(pcvr[~clicked], edges),
        },
    }
    if truth is not None:
        true = truth.of(predictions.sample_id).pcvr
        result["truth"] = {
            space: {
                **_lists(metrics.calibration_curve(true[rows], pcvr[rows], 20)),
                "mean_true": float(true[rows].mean()),
                "mean_predicted": float(pcvr[rows].mean(dtype=np.float64)),
                "shares_true": _shares(true[rows], edges),
            }
            for space, rows in (("clicked", clicked), ("unclicked", ~clicked))
            if rows.any()
        }
    return result


def synthetic_parameters(truth: str | Path | None) -> dict[str, Any] | None:
    """Returns the parameters of the synthetic log whose truth this is, if they lie beside it."""
    if truth is None:
        return None
    path = Path(truth).parent / "synth.json"
    if not path.is_file():
        return {}
    parameters: dict[str, Any] = msgspec.json.decode(path.read_bytes()).get("parameters", {})
    return parameters


def to_json(results: dict[str, Any]) -> bytes:
    """Returns results as indented JSON; nan and infinity become null."""
    return msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n"


def write(results: dict[str, Any], out: str | Path) -> None:
    """Writes results.json and results.md into `out`, which must exist."""
    Path(out, "results.json").write_bytes(to_json(results))
    Path(out, "results.md").write_text(markdown(results), encoding="utf-8")


def markdown(results: dict[str, Any]) -> str:
    """Returns the comparison as a Markdown table of means and standard deviations."""
    titles = [title for title, place in COLUMNS.items() if _anywhere(results, place)]
    rows = [["method", *titles], ["---"] * (len(titles) + 1)]
    for method in results["methods"].values():
        cells = [cell(method["summary"].get(COLUMNS[title]), COLUMNS[title]) for title in titles]
        rows.append([method["title"], *cells])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    data = "; ".join(
        f"{name}: {d['impressions']:,} impressions, {d['clicks']:,} clicks, "
        f"{d['conversions']:,} conversions"
        for name, d in results["data"].items()
    )
    return f"{table}\n\n{results['protocol']}\n{data}; repeats: {results['repeats']}.\n"


def cell(summary: dict[str, Any] | None, place: str) -> str:
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


def _anywhere(results: dict[str, Any], place: str) -> bool:
    return any(place in method["summary"] for method in results["methods"].values())


def _leaves(value: dict[str, Any], place: str) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for key, inner in value.items():
        if isinstance(inner, dict):
            found += _leaves(inner, f"{place}.{key}")
        elif isinstance(inner, int | float):
            found.append((f"{place}.{key}", float(inner)))
    return found


def _mean_and_std(values: Sequence[float]) -> dict[str, Any]:
    finite = [value for value in values if math.isfinite(value)]
    return {
        "mean": _rounded(statistics.fmean(finite)) if finite else None,
        "std": _rounded(statistics.stdev(finite)) if len(finite) > 1 else None,
        "runs": len(finite),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.9g}")


def _lists(curve: Any) -> dict[str, list[float]]:
    return {
        name: [_rounded(v) if isinstance(v, float) else v for v in values.tolist()]
        for name, values in curve._asdict().items()
    }


def _shares(values: NDArray[Any], edges: NDArray[np.float64]) -> list[float]:
    """Returns the share of values between edges of log10; those outside count at the ends."""
    if not len(values):
        return [0.0] * (len(edges) - 1)
    logs = np.log10(np.clip(values.astype(np.float64), 10 ** edges[0], 10 ** edges[-1]))
    shares = np.histogram(np.clip(logs, edges[0], edges[-1]), edges)[0] / len(values)
    return [_rounded(share) for share in shares.tolist()]
