"""fit: the one model-agnostic loop over batches, which can be stopped, saved and continued.

A model is any `nn.Module` with `out = model(batch)` and `loss = model.loss(out, batch)`. Batches
are any iterable of `Batch`; one pass over it is an epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .batch import Batch
from .config import EarlyStopping
from .early_stopping import Best
from .evaluation import device_of, evaluate, moved
from .progress import Bar
from .schedule import default_optimizers

READ_STEPS = 50
"""Steps from one reading of the losses to the next on a device that works ahead of Python."""


class Step(NamedTuple):
    """One step of training, as `on_step` sees it after the update."""

    step: int  # of this fit, from 1
    epoch: int  # of this fit, from 1
    loss: float  # of the batch, as model.loss gives it
    impressions: int  # seen so far
    seconds: float  # of training so far
    lr: float = math.nan  # of the first optimizer, in this step


@dataclass
class History:
    """What a training did."""

    steps: int = 0
    impressions: int = 0
    seconds: float = 0.0  # of training alone, without validation
    losses: list[float] = field(default_factory=list)  # one for each step
    batch_sizes: list[int] = field(default_factory=list)  # one for each step
    valid: list[dict[str, Any]] = field(default_factory=list)  # one for each evaluation
    valid_steps: list[int] = field(default_factory=list)  # steps before each evaluation

    @property
    def impressions_per_second(self) -> float:
        return self.impressions / self.seconds if self.seconds > 0 else float("nan")

    def facts(self) -> dict[str, Any]:
        """Returns steps, impressions, seconds, rate and loss curve, as results say them."""
        impressions, losses = self.loss_curve()
        return {
            "steps": self.steps,
            "impressions": self.impressions,
            "seconds": round(self.seconds, 3),
            "impressions_per_second": self.impressions_per_second,
            "loss_curve": {"impressions": impressions, "loss": losses},
        }

    def loss_curve(self, points: int = 100) -> tuple[list[int], list[float]]:
        """Returns impressions seen and the mean loss of the impressions since the point before.

        >>> History(2, 6, losses=[0.9, 0.3], batch_sizes=[4, 2]).loss_curve(points=1)
        ([6], [0.7])
        """
        if not self.losses:
            return [], []
        sizes = np.asarray(self.batch_sizes[: len(self.losses)])
        starts = np.unique(np.linspace(0, len(sizes), min(points, len(sizes)) + 1).astype(int))[:-1]
        seen = np.add.reduceat(sizes, starts)
        losses = np.add.reduceat(np.asarray(self.losses) * sizes, starts) / seen
        return np.cumsum(seen).tolist(), [float(f"{loss:.9g}") for loss in losses]


def fit(model: nn.Module, batches: Iterable[Batch], **options: Any) -> History:
    """Trains a model and returns what happened: losses, steps, impressions per second.

    The options are those of `Training`: ``fit(model, batches, epochs=2, valid=valid)``.
    """
    return Training(model, batches, **options).run()


class Training:
    """The training of one model, which `run` does and which can go on in another process.

    After each step its state is whole: `state_dict()` and the model's own together are all that the
    next step depends on. Loaded into a training made with the same arguments, on the same machine
    with as many threads, they lead to the same bits as if nothing had come between.

    Args:
        model: `model(batch)` and `model.loss(out, batch)` are all that is asked of it. Batches are
            moved to the device of its first parameter.
        batches: One pass over it is an epoch; `Dataset.batches` shuffles anew in each. To go on
            within an epoch it must have `state_dict` and `load_state_dict`, as those have.
        epochs: Passes over `batches`.
        max_steps: Instead of `epochs`: as many passes as so many steps take.
        optimizers: One or several; all are stepped and cleared after each batch. None means
            `default_optimizers(model, lr)`.
        schedulers: One or several of torch's, all stepped after each batch; see
            `schedule.schedulers`.
        lr: Learning rate of the default optimizers; ignored where optimizers are given.
        valid: Evaluated after each epoch, into `History.valid`.
        evaluate_steps: Evaluate also within an epoch, after so many steps each time.
        early_stopping: When to end before the last epoch. The model then has, at the end, the
            parameters of its best evaluation.
        on_step: Called after each update, with its loss. On a GPU losses are read every
            `READ_STEPS` steps, so that Python does not wait for it: then it is called for all of
            those.
        on_evaluation: Called after each evaluation.
        on_epoch: Called after each epoch (and its evaluation) with its number, from 1.
        between: Called when the state is whole: after each step, and within an evaluation after
            each batch. What it raises ends `run`, which can be called again.
        progress: Shows a bar with the rate in impressions per second, the time left and the loss.
        description: What stands before the bar.

    Attributes:
        history: What was done so far.
        epoch: The epoch under way, from 1.
        finished: Nothing is left to do.
        whole: Nothing was broken off in the middle of a step, so that `state_dict` can be saved.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        *,
        epochs: int = 1,
        max_steps: int | None = None,
        optimizers: Sequence[torch.optim.Optimizer] | torch.optim.Optimizer | None = None,
        schedulers: (
            Sequence[torch.optim.lr_scheduler.LRScheduler] | torch.optim.lr_scheduler.LRScheduler
        ) = (),
        lr: float = 1e-3,
        valid: Iterable[Batch] | None = None,
        evaluate_steps: int | None = None,
        early_stopping: EarlyStopping | None = None,
        on_step: Callable[[Step], None] | None = None,
        on_evaluation: Callable[[History], None] | None = None,
        on_epoch: Callable[[int, History], None] | None = None,
        between: Callable[[], None] | None = None,
        progress: bool = True,
        description: str = "train",
    ) -> None:
        if epochs < 0:
            raise ValueError(f"epochs: expected at least 0, got {epochs}")
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"max_steps: expected at least 1, got {max_steps}")
        if evaluate_steps is not None and evaluate_steps < 1:
            raise ValueError(f"evaluate_steps: expected at least 1, got {evaluate_steps}")
        for name, given in (("evaluate_steps", evaluate_steps), ("early_stopping", early_stopping)):
            if given is not None and valid is None:
                raise ValueError(f"{name}: expected valid with it, got none")
        if isinstance(optimizers, torch.optim.Optimizer):
            optimizers = [optimizers]
        if isinstance(schedulers, torch.optim.lr_scheduler.LRScheduler):
            schedulers = [schedulers]
        self.model, self.batches = model, batches
        self.epochs, self.max_steps = epochs, max_steps
        self.optimizers = default_optimizers(model, lr) if optimizers is None else optimizers
        self.schedulers = schedulers
        self.valid, self.evaluate_steps, self.early_stopping = valid, evaluate_steps, early_stopping
        self.on_step, self.on_evaluation, self.on_epoch = on_step, on_evaluation, on_epoch
        self.between = between
        self.progress, self.description = progress, description
        self.history = History()
        self.epoch = 1
        self.finished = False
        self._ended = epochs == 0 and max_steps is None
        self._epoch_over = False  # all its steps are done
        self._seen = 0  # impressions of this epoch
        self._position = _position(batches)  # of the batch after the last step
        self._unread: list[tuple[Tensor, Step]] = []  # losses on the device
        self._loss: float | None = None  # the last one that was read
        self._device = device_of(model)
        self._best: Best | None = None
        self.whole = True

    def run(self) -> History:
        """Does what is left to do.

        Raises:
            FloatingPointError: If a loss is nan or infinite. On the CPU the model is as before that
                step, on a GPU up to `READ_STEPS` steps further.
            ValueError: If an epoch holds no batch.
        """
        while not (self.finished or self._ended or self._stale()):
            self.model.train()
            if not self._epoch_over:
                self._steps()
            if not self._stale():
                self._end_epoch()
        if not self.finished:
            self._read()
            if self._best is not None:
                self.model.load_state_dict(self._best.parameters)
            self.finished = True
        return self.history

    def _stale(self) -> bool:
        stopping, best = self.early_stopping, self._best
        return stopping is not None and best is not None and best.since >= stopping.patience

    def _enough(self) -> bool:
        return self.max_steps is not None and self.history.steps >= self.max_steps

    def state_dict(self) -> dict[str, Any]:
        """Returns all that the next step depends on besides the model's own state_dict.

        Tensors, numbers, texts, None, and dicts, lists and tuples of them. Of a training that is
        finished it is the history alone.
        """
        self._read()
        state = {
            "finished": self.finished,
            "history": {
                **vars(self.history),
                "losses": torch.tensor(self.history.losses, dtype=torch.float64),
                "batch_sizes": torch.tensor(self.history.batch_sizes, dtype=torch.int64),
            },
        }
        if self.finished:
            return state
        return state | {
            "epoch": self.epoch,
            "epoch_over": self._epoch_over,
            "ended": self._ended,
            "seen": self._seen,
            "batches": self._position,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "best": None if self._best is None else vars(self._best),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to where another training stood; its model's state_dict is loaded apart.

        Raises:
            ValueError: The state is that of other optimizers, schedulers or batches.
        """
        history = dict(state["history"])
        for name in ("losses", "batch_sizes"):
            history[name] = history[name].tolist()
        self.finished = state["finished"]
        if not self.finished:
            self._load_unfinished(state)
        self.history = History(**history)
        self._unread, self._loss = [], None

    def _load_unfinished(self, state: Mapping[str, Any]) -> None:
        for name in ("optimizers", "schedulers"):
            if len(state[name]) != len(getattr(self, name)):
                raise ValueError(
                    f"state: expected {len(getattr(self, name))} {name}, got {len(state[name])}"
                )
        if state["batches"] is None or not hasattr(self.batches, "load_state_dict"):
            raise ValueError(
                f"batches: expected some with load_state_dict, to go on from where they were left, "
                f"got {type(self.batches).__name__}"
            )
        self.batches.load_state_dict(state["batches"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for scheduler, saved in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        self.epoch, self._epoch_over, self._seen = (
            state["epoch"],
            state["epoch_over"],
            state["seen"],
        )
        self._ended, self._position = state["ended"], state["batches"]
        self._best = None if state["best"] is None else Best(**state["best"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"]:
            torch.cuda.set_rng_state_all(state["random_cuda"])

    def _steps(self) -> None:
        """Does the steps that are left of the epoch."""
        self._evaluate_within()
        title = self.description
        if self.epochs > 1 and self.max_steps is None:
            title += f" {self.epoch}/{self.epochs}"
        with Bar(self.batches, self.progress, title, self._seen) as bar:
            mark = time.perf_counter()
            for batch in bar.over():
                if self._stale() or self._enough():
                    break
                self._step(moved(batch, self._device), mark)
                bar.advance(len(batch.labels), self._loss)
                self._evaluate_within()
                if self.between is not None:
                    self.between()
                mark = time.perf_counter()
        if hasattr(self.batches, "close"):
            self.batches.close()
        if not self._stale():
            if not self._seen:
                raise ValueError(
                    f"batches: expected at least one in epoch {self.epoch}, got none (an iterator "
                    "that is used up? each epoch is one pass over batches)"
                )
            self._read()
            self._position = _position(self.batches)
            self._epoch_over = True

    def _step(self, batch: Batch, began: float) -> None:
        history, size = self.history, len(batch.labels)
        loss = self.model.loss(self.model(batch), batch)  # type: ignore[operator]
        lr = float(self.optimizers[0].param_groups[0]["lr"]) if self.optimizers else math.nan
        now = at_once(self._device)
        if now and not math.isfinite(loss.detach()):
            raise FloatingPointError(
                _explained(self.model, float(loss.detach()), history.steps + 1, self.epoch, batch)
            )
        self.whole = False
        loss.backward()
        for each in self.optimizers:
            each.step()
        for each in self.optimizers:
            each.zero_grad()
        for scheduler in self.schedulers:
            scheduler.step()
        history.steps += 1
        history.impressions += size
        history.seconds += time.perf_counter() - began
        history.batch_sizes.append(size)
        self._seen += size
        self._position = _position(self.batches)
        step = Step(history.steps, self.epoch, 0.0, history.impressions, history.seconds, lr)
        self._unread.append((loss.detach(), step))
        self.whole = True
        if now or len(self._unread) >= READ_STEPS:
            self._read()

    def _read(self) -> None:
        """Reads the losses that were left on the device."""
        if not self._unread:
            return
        for value in torch.stack([loss for loss, _ in self._unread]).tolist():
            _, step = self._unread[0]
            if not math.isfinite(value):
                self.whole = False
                raise FloatingPointError(_explained(self.model, value, step.step, step.epoch, None))
            del self._unread[0]  # only now: what is raised here or by on_step loses no other
            self._loss = value
            self.history.losses.append(value)
            if self.on_step is not None:
                self.on_step(step._replace(loss=value))

    def _end_epoch(self) -> None:
        if self.valid is not None and self.history.valid_steps[-1:] != [self.history.steps]:
            self._evaluate()
        if self.on_epoch is not None:
            self.on_epoch(self.epoch, self.history)
        self.epoch, self._epoch_over, self._seen = self.epoch + 1, False, 0
        self._ended = self._enough() or (self.max_steps is None and self.epoch > self.epochs)

    def _evaluate_within(self) -> None:
        """Evaluates within an epoch, where it is time."""
        steps = self.history.steps
        if self.evaluate_steps is None or steps == 0 or steps % self.evaluate_steps:
            return
        if self.valid is not None and self.history.valid_steps[-1:] != [steps]:
            self._evaluate()

    def _evaluate(self) -> None:
        assert self.valid is not None
        self._read()
        result = evaluate(self.model, self.valid, progress=self.progress, after_batch=self.between)
        history = self.history
        history.valid.append(result)
        history.valid_steps.append(history.steps)
        if self.early_stopping is not None:
            self._best = Best.of(
                self._best, result, self.early_stopping, history.steps, self.model.state_dict()
            )
        if self.on_evaluation is not None:
            self.on_evaluation(history)


def at_once(device: torch.device) -> bool:
    """Returns whether a loss on the device can be read without waiting for it."""
    return device.type == "cpu"


def _position(batches: Any) -> dict[str, Any] | None:
    """Returns where batches stand, if they can say it."""
    return batches.state_dict() if hasattr(batches, "state_dict") else None


def _explained(model: nn.Module, loss: float, step: int, epoch: int, batch: Batch | None) -> str:
    """Returns the message for a loss that is not finite, with the first place found to blame."""
    inputs = (
        {}
        if batch is None
        else {
            "batch.labels": batch.labels,
            "batch.plan.weights": batch.plan.weights,
            "batch.dense": batch.dense,
            "batch.impression_weights": batch.impression_weights,
        }
    )
    named = [*inputs.items(), *model.named_parameters()]
    blamed = next((n for n, t in named if t is not None and not torch.isfinite(t).all()), None)
    place = (
        f"{blamed} holds a value that is not finite"
        if blamed
        else "batch and parameters are finite: has a logit grown too large (lower the lr)?"
    )
    return f"step {step} (epoch {epoch}): expected a finite loss, got {loss}; {place}"
