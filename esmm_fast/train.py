"""fit, predict and evaluate: the one model-agnostic loop over batches.

A model is any `nn.Module` with `out = model(batch)` and `loss = model.loss(out, batch)`; of `out`
the attributes `pctr`, `pcvr` and `pctcvr` [B] are read where they exist. Batches are any iterable
of `Batch`; one pass over it is an epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from . import metrics
from .batch import Batch
from .embedding import EmbeddingTables
from .optim import LazyAdam

SPACES = {
    "ctr": "all impressions",
    "cvr": "clicked impressions",
    "ctcvr": "all impressions",
}
"""The impressions over which a task's metrics are taken."""


class Step(NamedTuple):
    """One step of training, as `on_step` sees it after the update."""

    step: int  # of this fit, from 1
    epoch: int  # of this fit, from 1
    loss: float  # of the batch, as model.loss gives it
    impressions: int  # seen so far
    seconds: float  # of training so far


@dataclass
class History:
    """What a call of `fit` did."""

    steps: int = 0
    impressions: int = 0
    seconds: float = 0.0  # of training alone, without validation
    losses: list[float] = field(default_factory=list)  # one for each step
    batch_sizes: list[int] = field(default_factory=list)  # one for each step
    valid: list[dict[str, Any]] = field(default_factory=list)  # one for each epoch

    @property
    def impressions_per_second(self) -> float:
        return self.impressions / self.seconds if self.seconds > 0 else float("nan")

    def loss_curve(self, points: int = 100) -> tuple[list[int], list[float]]:
        """Returns impressions seen and the mean loss of the impressions since the point before.

        >>> History(2, 6, losses=[0.9, 0.3], batch_sizes=[4, 2]).loss_curve(points=1)
        ([6], [0.7])
        """
        if not self.losses:
            return [], []
        sizes = np.asarray(self.batch_sizes)
        starts = np.unique(np.linspace(0, len(sizes), min(points, len(sizes)) + 1).astype(int))[:-1]
        seen = np.add.reduceat(sizes, starts)
        losses = np.add.reduceat(np.asarray(self.losses) * sizes, starts) / seen
        return np.cumsum(seen).tolist(), [float(f"{loss:.9g}") for loss in losses]


def default_optimizers(
    model: nn.Module,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    tables: str = "lazy_adam",
) -> list[torch.optim.Optimizer]:
    """Returns the optimizers of `fit`: LazyAdam for the embedding tables, Adam for all the rest.

    Args:
        model: Any module; without `EmbeddingTables` inside it is one Adam over its parameters.
        lr: Learning rate of both.
        betas: Of both.
        eps: Of both.
        tables: "lazy_adam" updates the touched rows alone; "adam" is the dense Adam of the paper.
    """
    if tables not in ("lazy_adam", "adam"):
        raise ValueError(f"tables: expected 'lazy_adam' or 'adam', got {tables!r}")
    found = [m for m in model.modules() if isinstance(m, EmbeddingTables)]
    if tables == "adam" or not found:
        return [_adam(model.parameters(), lr, betas, eps)]
    of_tables = {id(parameter) for module in found for parameter in module.parameters()}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in of_tables]
    optimizers: list[torch.optim.Optimizer] = [LazyAdam(model, lr=lr, betas=betas, eps=eps)]
    if rest:
        optimizers.append(_adam(rest, lr, betas, eps))
    return optimizers


def _adam(
    parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], eps: float
) -> torch.optim.Adam:
    """Returns torch's Adam in its fused form, less than half the time of the others on the CPU."""
    parameters = list(parameters)
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.Adam(parameters, lr=lr, betas=betas, eps=eps, fused=fused or None)


def fit(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    epochs: int = 1,
    optimizers: Sequence[torch.optim.Optimizer] | None = None,
    lr: float = 1e-3,
    valid: Iterable[Batch] | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_epoch: Callable[[int, History], None] | None = None,
    progress: bool = True,
    description: str = "train",
) -> History:
    """Trains a model and returns what happened: losses, steps, impressions per second.

    Args:
        model: `model(batch)` and `model.loss(out, batch)` are all that is asked of it. Batches are
            moved to the device of its first parameter.
        batches: One pass over it is an epoch; `Dataset.batches` shuffles anew in each.
        epochs: Passes over `batches`.
        optimizers: All are stepped and cleared after each batch; None means
            `default_optimizers(model, lr)`.
        lr: Learning rate of the default optimizers; ignored where optimizers are given.
        valid: Evaluated after each epoch, into `History.valid`.
        on_step: Called after each update.
        on_epoch: Called after each epoch (and its evaluation) with its number, from 1.
        progress: Shows a bar with the rate in impressions per second, the time left and the loss.
        description: What stands before the bar.

    Raises:
        FloatingPointError: If a loss is nan or infinite; the model is as before that step.
    """
    if epochs < 0:
        raise ValueError(f"epochs: expected at least 0, got {epochs}")
    if optimizers is None:
        optimizers = default_optimizers(model, lr)
    device = _device(model)
    history = History()
    for epoch in range(1, epochs + 1):
        model.train()
        title = description if epochs == 1 else f"{description} {epoch}/{epochs}"
        started, before = time.perf_counter(), history.seconds
        with _bar(batches, progress, title) as bar:
            for batch in bar.over():
                batch = _on(batch, device)
                loss = model.loss(model(batch), batch)  # type: ignore[operator]
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise FloatingPointError(
                        _explained(model, batch, value, history.steps + 1, epoch)
                    )
                loss.backward()
                for optimizer in optimizers:
                    optimizer.step()
                for optimizer in optimizers:
                    optimizer.zero_grad()
                size = len(batch.labels)
                history.steps += 1
                history.impressions += size
                history.losses.append(value)
                history.batch_sizes.append(size)
                history.seconds = before + time.perf_counter() - started
                bar.advance(size, value)
                if on_step is not None:
                    on_step(Step(history.steps, epoch, value, history.impressions, history.seconds))
        if valid is not None:
            history.valid.append(evaluate(model, valid, progress=progress))
        if on_epoch is not None:
            on_epoch(epoch, history)
    return history


@dataclass(frozen=True)
class Predictions:
    """What a model says of n impressions, with their labels; None where the model says nothing."""

    labels: NDArray[np.float32]  # [n, K], click first
    sample_id: NDArray[np.int64] | None = None  # [n]
    pctr: NDArray[np.float32] | None = None  # [n]
    pcvr: NDArray[np.float32] | None = None  # [n]
    pctcvr: NDArray[np.float32] | None = None  # [n]

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


def predict(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    progress: bool = False,
    description: str = "predict",
) -> Predictions:
    """Returns the predictions for every impression of `batches`, in their order."""
    device = _device(model)
    parts: dict[str, list[Any]] = {}
    was_training = model.training
    model.eval()
    try:
        with _bar(batches, progress, description) as bar, torch.no_grad():
            for batch in bar.over():
                out = model(_on(batch, device))
                columns = {name: getattr(out, name, None) for name in ("pctr", "pcvr", "pctcvr")}
                columns |= {"labels": batch.labels, "sample_id": batch.sample_id}
                for name, values in columns.items():
                    if values is not None:
                        parts.setdefault(name, []).append(_to_numpy(values))
                bar.advance(len(batch.labels))
    finally:
        model.train(was_training)
    if not parts:
        return Predictions(labels=np.empty((0, 2), np.float32))
    return Predictions(**{name: np.concatenate(values) for name, values in parts.items()})


@dataclass(frozen=True)
class Truth:
    """The true probabilities behind n impressions of a synthetic log."""

    sample_id: NDArray[np.int64]  # [n]
    pctr: NDArray[np.float64]  # [n], p(click)
    pcvr: NDArray[np.float64]  # [n], p(conversion | click)

    @staticmethod
    def load(path: str | Path) -> Truth:
        """Returns the truth of a Parquet file with the columns sample_id, pctr and pcvr."""
        import pyarrow.parquet as parquet

        names = ["sample_id", "pctr", "pcvr"]
        if missing := set(names) - set(parquet.read_schema(path).names):
            raise ValueError(f"{path}: expected columns {names}, got none named {sorted(missing)}")
        table = parquet.read_table(path, columns=names)
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
) -> dict[str, Any]:
    """Returns the metrics of a model's own predictions; see `task_metrics`."""
    return task_metrics(predict(model, batches, progress=progress, description="evaluate"), truth)


def task_metrics(predictions: Predictions, truth: Truth | None = None) -> dict[str, Any]:
    """Returns the metrics of every task, each over its own space, as plain numbers.

    Keys: `impressions`, `clicks`, `conversions` (as the labels say), and for each task that the
    predictions allow `metrics.summary` with its `space`:

    - `ctr`: pCTR against the click, all impressions.
    - `cvr`: pCVR against the conversion, **clicked** impressions: others have no such label.
    - `ctcvr`: pCTR * pCVR against click-and-conversion, all impressions. The pCTR is the one in the
      predictions: the model's own in `evaluate`.

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
        "conversions": 0 if conversion is None else int((conversion * clicked).sum()),
    }
    labels = {
        "ctr": (predictions.pctr, predictions.labels[:, 0], None),
        "cvr": (predictions.pcvr, conversion, clicked),
        "ctcvr": (predictions.pctcvr, conversion, None),
    }
    for task, (scores, label, rows) in labels.items():
        if scores is not None and label is not None:
            kept = slice(None) if rows is None else rows
            result[task] = {"space": SPACES[task], **metrics.summary(label[kept], scores[kept])}
    if truth is not None:
        known = truth.of(predictions.sample_id)
        known.check(clicked)
        result["truth"] = _truth_metrics(predictions, known)
    return result


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


class _Bar:
    """A progress bar in impressions, whose end is estimated from the number of batches."""

    def __init__(self, batches: Iterable[Batch], bar: Any) -> None:
        self.batches, self.bar = batches, bar

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def over(self) -> Iterator[Batch]:
        for batch in self.batches:
            if self.bar.total is None and isinstance(self.batches, Sized):
                self.bar.total = len(self.batches) * len(batch.labels)
            yield batch
        self.bar.total = self.bar.n

    def advance(self, impressions: int, loss: float | None = None) -> None:
        if loss is not None and not self.bar.disable:
            self.bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        self.bar.update(impressions)


def _bar(batches: Iterable[Batch], progress: bool, description: str) -> _Bar:
    return _Bar(
        batches,
        tqdm(
            desc=description,
            disable=not progress,
            unit=" impressions",
            unit_scale=True,
            dynamic_ncols=True,
            total=getattr(batches, "impressions", None),
        ),
    )


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _on(batch: Batch, device: torch.device) -> Batch:
    return batch if batch.labels.device == device else batch.to(device)


def _to_numpy(values: torch.Tensor) -> NDArray[Any]:
    values = values.detach().cpu()
    return (values.float() if values.is_floating_point() else values).numpy()


def _explained(model: nn.Module, batch: Batch, loss: float, step: int, epoch: int) -> str:
    """Returns the message for a loss that is not finite, with the first place found to blame."""
    inputs = {
        "batch.labels": batch.labels,
        "batch.plan.weights": batch.plan.weights,
        "batch.dense": batch.dense,
        "batch.impression_weights": batch.impression_weights,
    }
    named = [*inputs.items(), *model.named_parameters()]
    blamed = next((n for n, t in named if t is not None and not torch.isfinite(t).all()), None)
    place = (
        f"{blamed} holds a value that is not finite"
        if blamed
        else "batch and parameters are finite: has a logit grown too large (lower the lr)?"
    )
    return f"step {step} (epoch {epoch}): expected a finite loss, got {loss}; {place}"
