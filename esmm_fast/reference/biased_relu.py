"""ReLU of a sum with a bias per group of rows, in plain PyTorch: the specification."""

import torch
from torch import Tensor


def biased_relu(
    x: Tensor,  # [B, H] float32 or bfloat16
    bias: Tensor,  # [G, H] float32
    group: Tensor | None = None,  # [B] int32, or None: G = 1
) -> Tensor:
    """Returns relu(x + bias[group]), [B, H], computed in float32 and rounded to x's dtype."""
    added = bias if group is None else bias.index_select(0, group)
    return (x.to(bias.dtype) + added).relu().to(x.dtype)


def biased_relu_gradient(
    grad: Tensor,  # [B, H]
    out: Tensor,  # [B, H], what biased_relu returned
    group: Tensor | None = None,  # [B] int32, or None: G = 1
    num_groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of x, [B, H], and of bias, [G, H] float32."""
    grad_x = torch.where(out <= 0, grad.new_zeros(()), grad)
    at = torch.zeros(len(out), dtype=torch.int32) if group is None else group
    wide = grad_x.to(torch.promote_types(grad.dtype, torch.float32))
    grad_bias = wide.new_zeros(num_groups, out.shape[1]).index_add(0, at, wide)
    return grad_x, grad_bias
