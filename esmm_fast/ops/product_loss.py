"""product_loss: the loss of the entire-space chain, value and gradient in one pass."""

from typing import Any

import torch
from torch import Tensor

_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


@torch.library.register_fake("esmm_fast::product_loss")
def _(logits: Tensor, labels: Tensor, impression_weights: Tensor | None, reduction: int) -> Any:
    shape = (logits.shape[0],) if reduction == 0 else ()
    return logits.new_empty(shape), torch.empty_like(logits)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor, _grad: Any) -> Any:
    (grad_logits,) = ctx.saved_tensors
    if grad_loss.dim() == 1:
        grad_loss = grad_loss.unsqueeze(1)
    return grad_logits * grad_loss, None, None, None


torch.library.register_autograd("esmm_fast::product_loss", _backward, setup_context=_setup)


def product_loss(
    logits: Tensor,
    labels: Tensor,
    impression_weights: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Returns the loss of a chain of K stages, sum_k BCE(t_k, P_k), P_k = sigma(a_1) ... sigma(a_k)."""
    return torch.ops.esmm_fast.product_loss(
        logits, labels, impression_weights, _REDUCTIONS[reduction]
    )[0]
