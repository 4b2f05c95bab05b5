"""The optimizer step in plain PyTorch: the specification of ops.embedding_update."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..gradient_queue import KeptGradient


def row_gradients(gradient: KeptGradient) -> Tensor:
    """Returns the gradient of each touched row, [T, D]: the weighted sum over its occurrences."""
    by_bag = torch.cat([gradient.grad_common, gradient.grad_impression])
    by_occurrence = by_bag[gradient.bag_of_occurrence.long()]
    if gradient.weights is not None:
        by_occurrence = by_occurrence * gradient.weights.unsqueeze(1)
    touched = gradient.touched_rows.numel()
    numbers = torch.arange(touched, device=by_bag.device)
    segment = torch.repeat_interleave(numbers, gradient.segment_ptr.diff())
    return by_bag.new_zeros(touched, by_bag.shape[1]).index_add(
        0, segment, by_occurrence[gradient.occurrence_by_row.long()]
    )


def embedding_update(
    table: Tensor,  # [R, stride]; written
    gradient: KeptGradient,
    rule: str,
    *,
    step_size: float,
    grad_factor: float = 1.0,
    beta1: float = 0.0,
    beta2: float = 0.0,
    eps: float = 0.0,
    decay: float = 0.0,
) -> None:
    """Updates weight and optimizer state of the touched rows of `table` in place.

    Sources: torch.optim.SparseAdam (lazy_adam), torch.optim.Adagrad on sparse gradients (adagrad),
        FBGEMM's exact row-wise
    Adagrad (rowwise_adagrad).
    """
    g = row_gradients(gradient) * grad_factor
    touched, dim = gradient.touched_rows.long(), g.shape[1]
    row = table[touched]
    w, first, second = row[:, :dim], row[:, dim : 2 * dim], row[:, 2 * dim : 3 * dim]
    if rule == "sgd":
        w -= step_size * g
    elif rule == "adagrad":
        first += g * g
        w -= step_size * g / (first.sqrt() + eps)
    elif rule == "rowwise_adagrad":
        total = first[:, :1]
        total += (g * g).mean(1, keepdim=True)
        w -= step_size * g / (total.sqrt() + eps)
    elif rule == "lazy_adam":
        first += (1 - beta1) * (g - first)
        second += (1 - beta2) * (g * g - second)
        w *= 1 - decay
        w -= step_size * first / (second.sqrt() + eps)
    else:
        raise ValueError(f"rule: expected sgd, adagrad, rowwise_adagrad or lazy_adam, got {rule!r}")
    table[touched] = row
