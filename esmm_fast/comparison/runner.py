"""The runs of a comparison: the networks of a repeat, shared ones trained once, and the judging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__, metrics
from ..catalogue import CTR
from ..config import Settings
from ..data.dataset import Dataset
from ..data.facts import common_rows_of
from ..evaluation import COLUMNS, Predictions, Truth, task_metrics
from ..machine import peak_memory
from ..methods import Method, Network, fit_method
from ..samplers import Context, View
from ..vocabulary import Vocabulary
from .intervals import auc_error
from .records import Arrays, Records
from .results import rounded


class Runner:
    """Trains the networks of a repeat, each shared one once, and judges the methods."""

    def __init__(
        self,
        train: Dataset,
        parts: Mapping[str, Dataset],
        chosen: Sequence[Method],
        settings: Settings,
        truth: Truth | None,
        vocabulary: Vocabulary,
        records: Records,
        progress: bool,
    ) -> None:
        self.train, self.parts, self.settings, self.truth = train, parts, settings, truth
        self.vocabulary, self.records, self.progress = vocabulary, records, progress
        self.needs = _needs_of(chosen)
        self.clusters = common_rows_of(parts["test"])
        self._known: dict[str, Predictions] = {}  # labels and sample ids of each part
        self._repeat = -1  # that of the networks in `_trained_once`
        self._trained_once: dict[str, tuple[dict[str, Any], dict[str, Predictions]]] = {}

    def run(self, repeat: int, method: Method) -> dict[str, Any]:
        """Returns the record of one method in one repeat."""
        seed = self.settings.seed + repeat
        facts: dict[str, Any] = {}
        found: dict[str, dict[str, Predictions]] = {}
        for name, network in method.networks.items():
            facts[name], found[name] = self._network(repeat, method, name, network)
        record: dict[str, Any] = {"repeat": repeat, "seed": seed, "esmm_fast": __version__}
        record["networks"] = facts
        if method.name == CTR.name:
            record["metrics"] = task_metrics(found["ctr"]["test"], self.truth)
            return record
        judged: dict[str, Predictions] = {}
        for part in self.parts:
            own = method.combine({name: parts[part] for name, parts in found.items()})
            _, of_ctr = self._network(repeat, CTR, "ctr", CTR.networks["ctr"])
            pctr = of_ctr[part].pctr
            if pctr is None:
                raise RuntimeError("the CTR network gives no pctr")
            judged[part] = own.with_pctr(pctr)
            shared = all(network.shared for network in method.networks.values())
            if part == "test" and own.pctr is not None and not shared:
                with_own = task_metrics(own)
                record["own_pctr"] = {task: with_own[task] for task in ("ctr", "ctcvr")}
        result = task_metrics(judged["test"], self.truth)
        record["metrics"] = {k: v for k, v in result.items() if k != "ctr"}
        if "valid" in judged:
            valid = task_metrics(judged["valid"])
            record["valid"] = {task: valid[task] for task in ("cvr", "ctcvr")}
        record["pcvr_above_1"] = _above_1(judged["test"])
        record["intervals"] = self._intervals(repeat, method, judged["test"])
        if repeat == 0:
            record["curves"] = curves_of(judged["test"], self.truth)
        return record

    def _intervals(self, repeat: int, method: Method, judged: Predictions) -> dict[str, Any]:
        """Returns each AUC's standard error over test sets, and that of its difference to BASE's.

        Impressions of one common row are drawn together, since they are alike. Where BASE has not
        run yet, the pCVRs are kept on disk for `pair_with_base`.
        """
        kept = None if method.name == "base" else self.records.arrays(_judged(repeat, "base"))
        base = None if kept is None else kept["pcvr"]
        if method.name == "base" or (base is None and self.records.out is not None):
            self.records.save_arrays(_judged(repeat, method.name), {"pcvr": _scores(judged.pcvr)})
        spaces = {"cvr": judged.clicked, "ctcvr": np.ones(len(judged), bool)}
        found: dict[str, Any] = {}
        for task, scores in (("cvr", judged.pcvr), ("ctcvr", judged.pctcvr)):
            rows = spaces[task]
            arguments = (judged.labels[rows, 1], _scores(scores)[rows])
            _, error = auc_error(*arguments, clusters=self.clusters[rows])
            found[task] = {"auc_error": error}
            if base is not None:
                theirs = base if task == "cvr" else base * _scores(judged.pctr)
                difference, error = auc_error(
                    *arguments, minus=theirs[rows], clusters=self.clusters[rows]
                )
                found[task] |= {"minus_base": difference, "minus_base_error": error}
        return found

    def is_done(self, repeat: int, method: Method, with_base: bool) -> bool:
        """Returns whether a run is kept, and `with_base` can be paired with BASE's."""
        record = self.records.record(key_of(repeat, method.name))
        if record is None or not with_base or not _unpaired(record, method):
            return record is not None
        return self.records.arrays(_judged(repeat, method.name)) is not None

    def pair_with_base(self, repeat: int, method: Method) -> None:
        """Adds to a run that was kept before BASE's the errors of its differences to it."""
        key, kept = key_of(repeat, method.name), _judged(repeat, method.name)
        record, arrays = self.records.record(key), self.records.arrays(kept)
        if not _unpaired(record, method) or arrays is None:
            return
        _, of_ctr = self._network(repeat, CTR, "ctr", CTR.networks["ctr"])
        pctr = _scores(of_ctr["test"].pctr)
        judged = replace(of_ctr["test"], pcvr=arrays["pcvr"]).with_pctr(pctr)
        record = {**record, "intervals": self._intervals(repeat, method, judged)}
        self.records.save(key, record)
        self.records.drop_arrays(kept)

    def _network(
        self, repeat: int, method: Method, name: str, network: Network
    ) -> tuple[dict[str, Any], dict[str, Predictions]]:
        """Returns what a network's training did, and its predictions by part."""
        identity = _identity(method, name)
        needs = self.needs.get(identity, {})
        if network.shared is None and not needs:
            return self._trained(repeat, method, name, network, {})
        if repeat != self._repeat:
            self._repeat, self._trained_once = repeat, {}
        if identity not in self._trained_once:
            self._trained_once[identity] = (
                self._trained(repeat, method, name, network, needs)
                if network.shared is None
                else self._shared(repeat, method, name, network, needs)
            )
        return self._trained_once[identity]

    def _shared(
        self, repeat: int, method: Method, name: str, network: Network, needs: Mapping[str, View]
    ) -> tuple[dict[str, Any], dict[str, Predictions]]:
        """Returns a shared network as it is kept, or trains and keeps it."""
        key = f"{key_of(repeat, 'network')}-{network.shared}"
        facts, arrays = self.records.record(key), self.records.arrays(key)
        wanted = {*self.parts, *needs}
        if facts is None or arrays is None or not wanted <= {k.split(".")[0] for k in arrays}:
            facts, found = self._trained(repeat, method, name, network, needs)
            self.records.save_arrays(key, _arrays(found))
            return self.records.save(key, facts), found
        return facts, {p: self._restored(repeat, p, needs.get(p), arrays) for p in wanted}

    def _trained(
        self,
        repeat: int,
        method: Method,
        name: str,
        network: Network,
        needs: Mapping[str, View],
    ) -> tuple[dict[str, Any], dict[str, Predictions]]:
        seed = self.settings.seed + repeat
        earlier = {}
        for other, view in network.needs.items():
            _, of_other = self._network(repeat, method, other, method.networks[other])
            earlier[other] = of_other[_part_of(view)]
        with peak_memory() as memory:
            trained = fit_method(
                replace(method, networks={name: network}),
                self.train,
                self.vocabulary,
                self.settings,
                seed=seed,
                predictions=earlier,
                progress=self.progress,
            )
        facts = trained.histories[name].facts()
        facts |= {"view": trained.views[name], "peak_memory_bytes": memory.peak}
        alone = replace(trained, method=replace(method, combine=lambda networks: networks[name]))
        datasets = {**self.parts, **{p: self._needed(repeat, view) for p, view in needs.items()}}
        return facts, {
            part: alone.predict(dataset, self.vocabulary, self.settings, progress=self.progress)
            for part, dataset in datasets.items()
        }

    def _needed(self, repeat: int, view: View) -> Dataset:
        return view(self.train, Context(self.settings.seed + repeat))

    def _restored(self, repeat: int, part: str, view: View | None, arrays: Arrays) -> Predictions:
        known = self._known.get(part)
        if known is None:
            dataset = self.parts[part] if view is None else self._needed(repeat, view)
            ids = dataset.impressions["sample_id"].to_numpy()
            kept = ids if dataset.selection is None else ids[dataset.selection]
            known = Predictions(dataset.labels("and"), kept.astype(np.int64))
            if view is None:  # a view can be another one in each repeat
                self._known[part] = known
        columns: dict[str, Any] = {
            c: arrays[f"{part}.{c}"] for c in COLUMNS if f"{part}.{c}" in arrays
        }
        return replace(known, **columns)


def key_of(repeat: int, name: str) -> str:
    """Returns the key of a run among the records."""
    return f"{repeat:03d}-{name}"


def _judged(repeat: int, name: str) -> str:
    return f"{key_of(repeat, name)}-judged"


def _unpaired(record: Mapping[str, Any], method: Method) -> bool:
    """Returns whether a run's intervals lack the difference to BASE."""
    return (
        method.name not in ("base", CTR.name)
        and "minus_base_error" not in record["intervals"]["cvr"]
    )


def _identity(method: Method, name: str) -> str:
    """Returns what tells a network from others: its shared name, or its place in its method."""
    return method.networks[name].shared or f"{method.name}.{name}"


def _needs_of(methods: Sequence[Method]) -> dict[str, dict[str, View]]:
    """Returns the views that each network has to predict for others, by its identity and part."""
    needs: dict[str, dict[str, View]] = {}
    for method in methods:
        for network in method.networks.values():
            for other, view in network.needs.items():
                views = needs.setdefault(_identity(method, other), {})
                if views.setdefault(_part_of(view), view) is not view:
                    raise ValueError(
                        f"{method.name}: expected views of different names, got two different "
                        f"ones named {view.__name__!r}"
                    )
    return needs


def _part_of(view: View) -> str:
    return f"need-{view.__name__}"


def _arrays(found: Mapping[str, Predictions]) -> Arrays:
    columns = {f"{p}.{c}": getattr(found[p], c) for p in found for c in COLUMNS}
    return {name: values for name, values in columns.items() if values is not None}


def _scores(values: NDArray[Any] | None) -> NDArray[Any]:
    if values is None:
        raise ValueError("predictions: expected pctr, pcvr and pctcvr, got none")
    return values


def _above_1(predictions: Predictions) -> dict[str, float]:
    """Returns the share of impressions whose pCVR exceeds 1 (DIVISION's can)."""
    above = _scores(predictions.pcvr) > 1
    clicked = predictions.clicked
    return {
        "all": float(above.mean()) if len(above) else 0.0,
        "clicked": float(above[clicked].mean()) if clicked.any() else 0.0,
    }


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


def _lists(curve: Any) -> dict[str, list[float]]:
    return {
        name: [rounded(v) if isinstance(v, float) else v for v in values.tolist()]
        for name, values in curve._asdict().items()
    }


def _shares(values: NDArray[Any], edges: NDArray[np.float64]) -> list[float]:
    """Returns the share of values between edges of log10; those outside count at the ends."""
    if not len(values):
        return [0.0] * (len(edges) - 1)
    logs = np.log10(np.clip(values.astype(np.float64), 10 ** edges[0], 10 ** edges[-1]))
    shares = np.histogram(np.clip(logs, edges[0], edges[-1]), edges)[0] / len(values)
    return [rounded(share) for share in shares.tolist()]
