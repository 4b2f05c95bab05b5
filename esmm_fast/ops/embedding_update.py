"""embedding_update: the fused optimizer step over the touched rows of a table."""

from typing import Any

import torch
from torch import Tensor

from .._library import bumps_version, operators
from ..gradient_queue import KeptGradient

RULES = {"sgd": 0, "adagrad": 1, "rowwise_adagrad": 2, "lazy_adam": 3}


@torch.library.register_fake("esmm_fast::embedding_update")
def _(table: Tensor, *args: Any) -> None:
    return None


@torch.library.register_fake("esmm_fast::embedding_update_by_tensor")
def _(table: Tensor, *args: Any) -> None:
    return None


bumps_version("embedding_update")
bumps_version("embedding_update_by_tensor")


def embedding_update(
    table: Tensor,  # [R, stride]
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
    """Updates weight and optimizer state of the touched rows of `table` in place, in one pass.

    A row of `table` is the weight [D], then the states of the rule, then padding. With g =
    grad_factor * d(loss)/d(row):

    ``sgd``
        w -= step_size g
    ``adagrad``, state sum [D]
        sum += g^2; w -= step_size g / (sqrt(sum) + eps)
    ``rowwise_adagrad``, state sum [1]
        sum += mean of g^2 over the row; w -= step_size g / (sqrt(sum) + eps)
    ``lazy_adam``, states m [D], v [D]
        m += (1 - beta1) (g - m); v += (1 - beta2) (g^2 - v);
        w = (1 - decay) w - step_size m / (sqrt(v) + eps)

    Each row is owned by one thread: the same bits for any number of threads. Arguments are checked
    before the first row is written; on CUDA their indices are checked by the kernels, which leave
    a bad one out and let the next call on CUDA raise the IndexError (this call, where the
    environment has ESMM_FAST_CUDA_CHECK=1). There a touched row without an occurrence stays as it
    is.

    Args:
        table: [R, stride] float32 or float64, contiguous.
        gradient: Gradient by bag with the plan's transpose.
        rule: A name above.
        step_size: Learning rate with every correction that is the same for all rows.
        grad_factor: Multiplies the gradient first (loss scale, clipping).

    >>> from esmm_fast.gradient_queue import KeptGradient
    >>> index = lambda *values: torch.tensor(values, dtype=torch.int32)
    >>> table = torch.zeros(3, 4)
    >>> gradient = KeptGradient(  # row 1 in both bags, row 2 in the second
    ...     torch.zeros(0, 2), torch.tensor([[1., 2.], [10., 20.]]), None,
    ...     bag_of_occurrence=index(0, 1, 1), touched_rows=index(1, 2),
    ...     segment_ptr=index(0, 2, 3), occurrence_by_row=index(0, 1, 2))
    >>> embedding_update(table, gradient, "sgd", step_size=0.5)
    >>> table[:, :2]
    tensor([[  0.0000,   0.0000],
            [ -5.5000, -11.0000],
            [ -5.0000, -10.0000]])
    """
    operators.embedding_update(
        table,
        gradient.grad_common,
        gradient.grad_impression,
        gradient.weights,
        gradient.bag_of_occurrence,
        gradient.touched_rows,
        gradient.segment_ptr,
        gradient.occurrence_by_row,
        RULES[rule],
        grad_factor,
        step_size,
        beta1,
        beta2,
        eps,
        decay,
    )
