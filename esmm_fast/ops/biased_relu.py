"""biased_relu: what stands between two matrix products of a tower, and its gradient."""

from typing import Any

import torch
from torch import Tensor

from .._library import bumps_version, operators


@torch.library.register_fake("esmm_fast::biased_relu")
def _(x: Tensor, bias: Tensor, group: Tensor | None) -> None:
    return None


@torch.library.register_fake("esmm_fast::biased_relu_gradient")
def _(grad: Tensor, out: Tensor, group: Tensor | None, num_groups: Any) -> Any:
    return grad.new_empty((num_groups, grad.shape[1]), dtype=torch.float32)


bumps_version("biased_relu")
bumps_version("biased_relu_gradient")


def biased_relu_(
    x: Tensor,  # [B, H] float32 or bfloat16
    bias: Tensor,  # [G, H] float32
    group: Tensor | None = None,  # [B] int32, or None: G = 1
) -> Tensor:
    """Returns x, now relu(x + bias[group]), [B, H]: one pass over it, in place.

    The sum is float32 whatever x is, so that a common row's part is not rounded twice. Outside
    autograd: `tower` puts it into an autograd function with the product before it. A NaN stays.

    Args:
        x: [B, H] float32 or bfloat16, contiguous, on the CPU.
        bias: [G, H] float32.
        group: [B] int32: the row of `bias` that is added to each row of x. None: the only one.

    Equivalent to ``x.copy_((x.float() + bias[group]).relu())``.

    Raises:
        IndexError: ``group[3] = 7 is outside the 5 rows of bias``.
        ValueError: ``bias: expected shape [groups, 4], got [1, 3]``, the like for the others.

    >>> x = torch.tensor([[1., -1.], [2., -2.]])
    >>> biased_relu_(x, torch.tensor([[0., 0.], [-3., 3.]]), torch.tensor([0, 1]).int())
    tensor([[1., 0.],
            [0., 1.]])
    """
    operators.biased_relu(x, bias, group)
    return x


def biased_relu_gradient_(
    grad: Tensor,  # [B, H]
    out: Tensor,  # [B, H], what biased_relu_ wrote
    group: Tensor | None = None,  # [B] int32, or None: G = 1
    num_groups: int = 1,
) -> Tensor:
    """Returns the gradient of bias, [G, H] float32, and turns `grad` into that of x: in one pass.

    Consecutive rows of a group are summed by one thread in float32, whatever `grad` is, in blocks
    of 256: the same bits for any number of threads.

    Args:
        grad: [B, H] float32 or bfloat16, d(loss)/d(out), contiguous; its rows where `out` is not
            above 0 become 0.
        out: [B, H], dtype of grad.
        group: As in `biased_relu_`.
        num_groups: G.

    >>> out, grad = torch.tensor([[1., 0.], [3., 1.]]), torch.tensor([[10., 20.], [30., 40.]])
    >>> biased_relu_gradient_(grad, out)
    tensor([[40., 40.]])
    >>> grad
    tensor([[10.,  0.],
            [30., 40.]])
    """
    return operators.biased_relu_gradient(grad, out, group, num_groups)
