"""The optimizers of a training, and their learning rates: warm-up, then constant or falling."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from .embedding import tables_in
from .optim import LazyAdam


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
    found = tables_in(model)
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


@dataclass
class Factor:
    """The factor of the learning rate at each step, counted from 0.

    It rises over `warmup` steps, `(step + 1) / warmup`, and falls from 1 to `final` between the
    warm-up and step `total`.

    >>> factor = Factor("linear", warmup=2, total=6, final=0.0)
    >>> [factor(step) for step in range(7)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    >>> round(Factor("cosine", warmup=0, total=4, final=0.1)(2), 9)
    0.55
    """

    kind: str
    warmup: int
    total: int
    final: float

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.kind == "constant":
            return 1.0
        gone = min((step - self.warmup) / max(self.total - self.warmup, 1), 1.0)
        rest = 1 - gone if self.kind == "linear" else (1 + math.cos(math.pi * gone)) / 2
        return self.final + (1 - self.final) * rest


def schedulers(
    optimizers: Sequence[torch.optim.Optimizer],
    kind: str = "constant",
    *,
    warmup: int = 0,
    total: int,
    final: float = 0.0,
) -> list[LambdaLR]:
    """Returns one torch scheduler for each optimizer, to be stepped after each of its steps.

    Args:
        optimizers: Whose learning rates are scheduled; their `lr` is the highest one.
        kind: "constant", "linear" or "cosine", after the warm-up.
        warmup: Steps over which the rate rises from lr / warmup to lr.
        total: Steps of the whole training, at whose end a linear or cosine schedule arrives.
        final: Share of lr that it arrives at.

    Raises:
        ValueError: Naming the argument, also where the warm-up is longer than the training.
    """
    if kind not in ("constant", "linear", "cosine"):
        raise ValueError(f"kind: expected 'constant', 'linear' or 'cosine', got {kind!r}")
    if not 0 <= warmup <= total:
        raise ValueError(f"warmup: expected at most the total of {total} steps, got {warmup}")
    if kind == "constant" and warmup == 0:
        return []
    return [LambdaLR(each, Factor(kind, warmup, total, final)) for each in optimizers]
