"""predict, evaluate and the metrics of every task, each over its own space; against the truth too.

A model is any `nn.Module` with `out = model(batch)`; of `out` the attributes `pctr`, `pcvr` and
`pctcvr` [B] are read where they exist, and `stages`, a dict of such. Batches are any iterable of
`Batch`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from . import metrics
from .batch import Batch
from .calibration import undo_down_sampling
from .progress import Bar

SPACES = {
    "ctr": "all impressions",
    "cvr": "clicked impressions",
    "ctcvr": "all impressions",
}
"""The impressions over which a task's metrics are taken."""

COLUMNS = ("pctr", "pcvr", "pctcvr")
"""What a model can say of an impression."""


@dataclass(frozen=True)
class Predictions:
    """What a model says of n impressions, with their labels; None where the model says nothing."""

    labels: NDArray[np.float32]  # [n, K], click first
    sample_id: NDArray[np.int64] | None = None  # [n]
    pctr: NDArray[np.float32] | None = None  # [n]
    pcvr: NDArray[np.float32] | None = None  # [n]
    pctcvr: NDArray[np.float32] | None = None  # [n]
    stages: dict[str, NDArray[np.float32]] | None = None  # each [n]: P(label | those before it)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def clicked(self) -> NDArray[np.bool_]:  # [n]
        return self.labels[:, 0] == 1

    def with_pctr(self, pctr: NDArray[np.float32]) -> Predictions:
        """Returns these with another pCTR, and pCTCVR as its product with the pCVR."""
        if len(pctr) != len(self):
            raise ValueError(f"pctr: expected {len(self)} values, got {len(pctr)}")
        return replace(self, pctr=pctr, pctcvr=None if self.pcvr is None else pctr * self.pcvr)

    def corrected(self, kept: float) -> Predictions:
        """Returns these as of all impressions, where training kept a share of the unclicked ones.

        pCTR and pCTCVR change, pCVR does not; see `calibration.undo_down_sampling`. Of a chain's
        stages the first changes.

        Raises:
            ValueError: `kept` is no share, or there is a pCTCVR to correct and no pCTR.
        """
        if self.pctr is None and self.pctcvr is not None and kept != 1:
            raise ValueError("kept: expected predictions with a pCTR, got a pCTCVR without one")
        if self.stages:
            first = next(iter(self.stages))
            stages = {**self.stages, first: undo_down_sampling(self.stages[first], kept)}
            return self if kept == 1 else replace(self, stages=stages)
        pctr = undo_down_sampling([] if self.pctr is None else self.pctr, kept)
        return self if kept == 1 or self.pctr is None else self.with_pctr(pctr)


def predict_batch(model: nn.Module, batch: Batch) -> Predictions:
    """Returns what a model says of one batch, without gradients; its mode is the caller's."""
    with torch.no_grad():
        out = model(moved(batch, device_of(model)))
    found = {name: getattr(out, name, None) for name in (*COLUMNS, "stages")}
    found["sample_id"] = batch.sample_id
    return Predictions(
        labels=_to_numpy(batch.labels),
        **{name: _to_numpy(values) for name, values in found.items() if values is not None},
    )


def predict(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    progress: bool = False,
    description: str = "predict",
    after_batch: Callable[[], None] | None = None,
) -> Predictions:
    """Returns the predictions for every impression of `batches`, in their order.

    Args:
        model: Any model, see the head of this file; it is in its mode again at the end.
        batches: What is predicted.
        progress: Shows a bar.
        description: What stands before the bar.
        after_batch: Called after each batch.
    """
    was_training = model.training
    model.eval()
    try:
        with Bar(batches, progress, description) as bar:
            parts = []
            for batch in bar.over():
                parts.append(predict_batch(model, batch))
                bar.advance(len(batch.labels))
                if after_batch is not None:
                    after_batch()
    finally:
        model.train(was_training)
    if not parts:
        return Predictions(labels=np.empty((0, 2), np.float32))
    columns: dict[str, Any] = {}
    for name in vars(parts[0]):
        if getattr(parts[0], name) is not None:
            columns[name] = _joined([getattr(part, name) for part in parts])
    return Predictions(**columns)


@dataclass(frozen=True)
class Truth:
    """The true probabilities behind n impressions of a synthetic log."""

    sample_id: NDArray[np.int64]  # [n]
    pctr: NDArray[np.float64]  # [n], p(click)
    pcvr: NDArray[np.float64]  # [n], p(conversion | click)

    @staticmethod
    def load(path: str | Path) -> Truth:
        """Returns the truth of a Parquet file with the columns sample_id, pctr and pcvr."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        names = ["sample_id", "pctr", "pcvr"]
        if Path(path).is_dir():
            raise ValueError(f"{path}: expected a Parquet file with {names}, got a directory")
        try:
            if missing := set(names) - set(parquet.read_schema(path).names):
                raise ValueError(
                    f"{path}: expected columns {names}, got none named {sorted(missing)}"
                )
            table = parquet.read_table(path, columns=names)
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"{path}: expected a Parquet file with {names}, got another or a damaged one"
            ) from error
        ids, pctr, pcvr = (table[name].to_numpy() for name in names)
        return Truth(ids.astype(np.int64), pctr.astype(np.float64), pcvr.astype(np.float64))

    def of(self, sample_id: NDArray[np.int64] | None) -> Truth:
        """Returns the truth of the given impressions, in their order.

        Raises:
            ValueError: Naming the first impression that has no truth.
        """
        if sample_id is None:
            raise ValueError("truth needs the sample ids of the impressions; the batches have none")
        order = np.argsort(self.sample_id, kind="stable")
        known = self.sample_id[order]
        at = np.minimum(np.searchsorted(known, sample_id), max(len(known) - 1, 0))
        if len(sample_id) and (not len(known) or (known[at] != sample_id).any()):
            missing = sample_id[known[at] != sample_id] if len(known) else sample_id
            raise ValueError(
                f"truth: expected every impression, got none with sample_id {missing[0]} "
                f"({len(missing)} of {len(sample_id)} are missing): is it the truth of this log?"
            )
        rows = order[at]
        return Truth(self.sample_id[rows], self.pctr[rows], self.pcvr[rows])

    def crc32(self) -> str:
        """Returns a checksum of all of it, as 8 hexadecimal digits."""
        sums = 0
        for column in (self.sample_id, self.pctr, self.pcvr):
            sums = zlib.crc32(column.tobytes(), sums)
        return f"{sums:08x}"

    def check_covers(self, dataset: Any) -> None:
        """Raises ValueError where these are not the impressions of a dataset, each once.

        Of a view, or of a log whose bad lines were skipped, nothing can be said.
        """
        if dataset.selection is not None or dataset.manifest["rejected"]:
            return
        if len(self.sample_id) != len(dataset):
            raise ValueError(
                f"truth: expected one row for each of the {len(dataset)} impressions of "
                f"{dataset.path}, got {len(self.sample_id)}: "
                "is it the truth of the other half of the log?"
            )
        ids = dataset.impressions["sample_id"].to_numpy().astype(np.int64)
        if not np.array_equal(np.sort(ids), np.sort(self.sample_id)):
            raise ValueError(
                f"truth: expected the sample ids of {dataset.path}, got others: "
                "is it the truth of this log?"
            )

    def check(self, clicked: NDArray[np.bool_]) -> None:
        """Raises ValueError where clicks [n] cannot have been drawn with these pCTRs.

        Both halves of a log count their impressions from 1, so ids alone cannot tell a truth from
        that of the other half. The covariance of click - pCTR with pCTR is 0 in expectation; it is
        refused at 8 standard deviations.
        """
        centred = self.pctr - self.pctr.mean() if len(self.pctr) else self.pctr
        deviation = float(np.sqrt(((self.pctr * (1 - self.pctr)) * centred**2).sum()))
        covariance = float(((clicked - self.pctr) * centred).sum())
        if abs(covariance) > 8 * deviation and deviation > 0:
            raise ValueError(
                "truth: expected the pCTRs that the clicks were drawn with, got others "
                f"({covariance / deviation:+.0f} standard deviations off): "
                "is it the truth of the other half of the log?"
            )


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    truth: Truth | None = None,
    *,
    progress: bool = False,
    after_batch: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Returns the metrics of a model's own predictions; see `task_metrics` and `predict`.

    Raises:
        ValueError: There is nothing to evaluate on.
    """
    predictions = predict(
        model, batches, progress=progress, description="evaluate", after_batch=after_batch
    )
    if not len(predictions):
        raise ValueError(
            "batches: expected at least one impression, got none (an iterator that is used up?)"
        )
    return task_metrics(predictions, truth)


def task_metrics(predictions: Predictions, truth: Truth | None = None) -> dict[str, Any]:
    """Returns the metrics of every task, each over its own space, as plain numbers.

    Keys: `impressions`, `clicks`, `conversions` (as the labels say), and for each task that the
    predictions allow `metrics.summary` with its `space`:

    - `ctr`: pCTR against the click, all impressions.
    - `cvr`: pCVR against the conversion, **clicked** impressions: others have no such label.
    - `ctcvr`: pCTR * pCVR against click-and-conversion, all impressions. The pCTR is the one in the
      predictions: the model's own in `evaluate`.

    Of a chain of K stages `stages` instead: the metrics of each of `stage_columns`, by name.

    With the truth also `truth.{ctr,ctcvr}` over all impressions, and `truth.cvr.{all, clicked,
    unclicked}`: the true probability is the soft label, so an impression counts `pcvr` times as a
    positive and `1 - pcvr` times as a negative. An AUC or log loss against it is the expectation of
    the one against labels drawn from it (the ratio of expectations, for the AUC), free of the
    draw's noise and defined where nobody clicked. Beside it stand `best_auc` and `best_log_loss`,
    which the truth itself reaches, and the `correlation` of prediction and truth.
    """
    clicked = predictions.clicked
    conversion = predictions.labels[:, 1] if predictions.labels.shape[1] > 1 else None
    result: dict[str, Any] = {
        "impressions": len(predictions),
        "clicks": int(clicked.sum()),
        "conversions": 0 if conversion is None else int(predictions.labels.min(1).sum()),
    }
    if predictions.stages is not None:
        result["stages"] = {
            name: {"space": space, **metrics.summary(label[rows], scores[rows])}
            for name, (space, label, scores, rows) in stage_columns(predictions).items()
        }
    for task, space in SPACES.items():
        label, scores, rows = task_columns(predictions, task)
        if scores is not None and label is not None:
            kept = slice(None) if rows is None else rows
            result[task] = {"space": space, **metrics.summary(label[kept], scores[kept])}
    if truth is not None:
        known = truth.of(predictions.sample_id)
        known.check(clicked)
        result["truth"] = _truth_metrics(predictions, known)
    return result


def task_columns(predictions: Predictions, task: str) -> tuple[Any, Any, Any]:
    """Returns label [n], prediction [n] and the impressions that count (bool [n]; None: all).

    Label or prediction is None where there is none.
    """
    conversion = predictions.labels[:, 1] if predictions.labels.shape[1] > 1 else None
    if task == "ctr":
        return predictions.labels[:, 0], predictions.pctr, None
    if task == "cvr":
        return conversion, predictions.pcvr, predictions.clicked
    return conversion, predictions.pctcvr, None


def stage_columns(predictions: Predictions) -> dict[str, tuple[str, Any, Any, Any]]:
    """Returns (space, label [n], prediction [n], impressions that count) of a chain's stages.

    By name: a label's own stands for P(label | those before it) over the impressions that reached
    the stage before; with ".all" behind it, for P(it and all before it) over all impressions. The
    first stage's own is over all impressions too.

    >>> labels = np.array([[1, 1], [1, 0], [0, 0]], np.float32)
    >>> halves = np.full(3, 0.5, np.float32)
    >>> columns = stage_columns(Predictions(labels, stages={"click": halves, "buy": halves}))
    >>> {name: (space, p[rows].tolist()) for name, (space, _, p, rows) in columns.items()}
    ... # doctest: +NORMALIZE_WHITESPACE
    {'click': ('all impressions', [0.5, 0.5, 0.5]),
     'buy': ('impressions with click', [0.5, 0.5]),
     'buy.all': ('all impressions', [0.25, 0.25, 0.25])}
    """
    columns: dict[str, tuple[str, Any, Any, Any]] = {}
    every, before, reached = slice(None), "", None
    for k, (name, scores) in enumerate((predictions.stages or {}).items()):
        label = predictions.labels[:, k]
        if reached is None:
            columns[name] = ("all impressions", label, scores, every)
            reached = scores
        else:
            rows = predictions.labels[:, k - 1] == 1
            reached = reached * scores
            columns[name] = (f"impressions with {before}", label, scores, rows)
            columns[f"{name}.all"] = ("all impressions", label, reached, every)
        before = name
    return columns


def _truth_metrics(predictions: Predictions, truth: Truth) -> dict[str, Any]:
    clicked = predictions.clicked
    result: dict[str, Any] = {}
    if predictions.pctr is not None:
        result["ctr"] = _against_truth(truth.pctr, predictions.pctr)
    if predictions.pctcvr is not None:
        result["ctcvr"] = _against_truth(truth.pctr * truth.pcvr, predictions.pctcvr)
    if predictions.pcvr is not None:
        spaces = {"all": np.ones_like(clicked), "clicked": clicked, "unclicked": ~clicked}
        result["cvr"] = {
            space: _against_truth(truth.pcvr[rows], predictions.pcvr[rows])
            for space, rows in spaces.items()
        }
    return result


def _against_truth(true: NDArray[Any], scores: NDArray[Any]) -> dict[str, Any]:
    return {
        **metrics.summary(true, scores),
        "correlation": metrics.correlation(true, scores),
        "best_auc": metrics.auc(true, true),
        "best_log_loss": metrics.log_loss(true, true),
    }


def device_of(model: nn.Module) -> torch.device:
    """Returns the device of a model's first parameter."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def moved(batch: Batch, device: torch.device) -> Batch:
    """Returns the batch on a device."""
    return batch if batch.labels.device == device else batch.to(device)


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], dict):
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return np.concatenate(parts)


def _to_numpy(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _to_numpy(column) for name, column in values.items()}
    values = values.detach().cpu()
    return (values.float() if values.is_floating_point() else values).numpy()
