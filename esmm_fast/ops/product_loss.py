"""product_loss: the loss of the entire-space chain, value and gradient in one pass."""

from typing import Any, Literal

import torch
from torch import Tensor

from .._library import operators, refuse_transforms

Reduction = Literal["none", "mean", "sum"]

_REDUCTIONS: dict[str, int] = {"none": 0, "mean": 1, "sum": 2}


@torch.library.register_fake("esmm_fast::product_loss")
def _(logits: Tensor, labels: Tensor, impression_weights: Tensor | None, reduction: int) -> Any:
    shape = logits.shape[:1] if reduction == 0 else ()
    return logits.new_empty(shape), logits.new_empty(logits.shape)


def _grad_logits(ctx: Any, grad_loss: Tensor | None) -> Tensor | None:
    if grad_loss is None:
        return None
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "product_loss: expected a first derivative, got create_graph=True; "
            "for second derivatives take esmm_fast.reference.product_loss"
        )
    (grad_logits,) = ctx.saved_tensors
    return grad_logits * (grad_loss.unsqueeze(1) if grad_loss.dim() else grad_loss)


def _is_one(grad_loss: Tensor) -> bool:
    """Whether this is known to be 1: not on CUDA, where looking waits, nor while tracing."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or type(grad_loss) is not Tensor:
        return False
    return grad_loss.is_cpu and grad_loss.dim() == 0 and grad_loss.item() == 1


class _ProductLoss(torch.autograd.Function):
    """What `product_loss` calls: 10 us less per step than the autograd registered below."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, weights: Tensor | None, reduction: int
    ) -> Tensor:
        if torch.compiler.is_compiling():
            loss, grad_logits = operators.product_loss(logits, labels, weights, reduction)
        else:
            with torch._C._AutoDispatchBelowAutograd():  # 4 us less
                loss, grad_logits = operators.product_loss(logits, labels, weights, reduction)
        ctx.save_for_backward(grad_logits)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> Any:
        if _is_one(grad_loss):  # as in loss.backward(): a quarter of the time at B = 65536
            return ctx.saved_tensors[0], None, None, None
        return _grad_logits(ctx, grad_loss), None, None, None


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor | None, _: Any) -> Any:
    return _grad_logits(ctx, grad_loss), None, None, None


torch.library.register_autograd("esmm_fast::product_loss", _backward, setup_context=_setup)


def _like(logits: Tensor, name: str, tensor: Tensor) -> Tensor:
    if tensor.requires_grad:
        raise ValueError(
            f"{name}: expected a tensor that needs no gradient, got requires_grad=True"
        )
    return tensor if tensor.dtype == logits.dtype else tensor.to(logits.dtype)


def product_loss(
    logits: Tensor,  # [B, K]
    labels: Tensor,  # [B, K]
    impression_weights: Tensor | None = None,  # [B]
    reduction: Reduction = "mean",
) -> Tensor:
    """Returns the loss of a chain of K stages over the entire space, [] or [B].

    L_b = sum_k BCE(t_bk, P_bk), where P_bk = sigma(a_b1) ... sigma(a_bk) is the probability of
    passing stages 1 to k. For K = 2: BCE(click, pCTR) + BCE(click and conversion, pCTR * pCVR).

    Nothing is clamped. Value and gradient are accurate for logits up to 700 in size: relative to
    1e-6 in float32 and 1e-14 in float64 (a gradient: relative to the sum of the absolute terms of
    its stages). Beyond 700 they stay finite, in float64 accurate to 1e-12 for logits up to 10,000.

    Args:
        logits: [B, K] float32 or float64, the stages' logits a, first stage first; K >= 1.
            float16 and bfloat16 (autocast) are computed in float32 and give a float32 loss.
        labels: [B, K], any dtype: t_bk in [0, 1], whether impression b passed stages 1 to k. They
            may be soft, and need not decrease along the stages.
        impression_weights: [B], any dtype: w_b; None: all 1. A weight of 0 does not hide a NaN.
        reduction: ``"mean"`` gives sum_b w_b L_b / sum_b w_b, ``"sum"`` gives sum_b w_b L_b,
            ``"none"`` gives w_b L_b for each impression, [B].

    Equivalent to `esmm_fast.reference.product_loss`. The result has the same bits for any number
    of threads. A NaN among an impression's logits or labels makes its loss and gradient NaN. The
    mean over no impressions, or over weights that sum to 0, is NaN. There is no second derivative,
    and no gradient to labels and weights.

    Raises:
        ValueError: ``reduction: expected 'mean', 'sum' or 'none', got 'avg'``; ``labels: expected
            the shape of logits, [3, 2], got [3]``, the like for shape and device of each argument;
            labels or weights that need a gradient.
        TypeError: ``logits: expected a floating-point dtype, got torch.int64``.
        RuntimeError: a backward with ``create_graph=True``.
        NotImplementedError: inside a transform of torch.func.

    Source: ESMM, arXiv 1804.07931, Eq. 3 (K = 2).

    >>> logits = torch.zeros(1, 2, requires_grad=True)  # pCTR = 1/2, pCTCVR = 1/4
    >>> loss = product_loss(logits, torch.tensor([[1.0, 0.0]]))
    >>> f"{loss.item():.5f}"  # -log(1/2) - log(3/4)
    '0.98083'
    >>> loss.backward()
    >>> logits.grad  # -1/2 + 1/6, 1/6
    tensor([[-0.3333,  0.1667]])
    """
    refuse_transforms("product_loss")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")
    if not logits.is_floating_point():
        raise TypeError(f"logits: expected a floating-point dtype, got {logits.dtype}")
    if logits.dtype.itemsize < 4:
        logits = logits.float()
    labels = _like(logits, "labels", labels)
    if impression_weights is not None:
        impression_weights = _like(logits, "impression_weights", impression_weights)
    return _ProductLoss.apply(logits, labels, impression_weights, _REDUCTIONS[reduction])
