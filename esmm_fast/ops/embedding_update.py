"""embedding_update: the fused optimizer step over the touched rows of a table."""

from typing import Any

import torch
from torch import Tensor

from .gradient_queue import KeptGradient
from .mutation import bumps_version

RULES = {"sgd": 0, "adagrad": 1, "rowwise_adagrad": 2, "lazy_adam": 3}


@torch.library.register_fake("esmm_fast::embedding_update")
def _(table: Tensor, *args: Any) -> None:
    return None


bumps_version("embedding_update")


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
    """Updates weight and optimizer state of the touched rows of `table` in place.
    """
    torch.ops.esmm_fast.embedding_update(
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
