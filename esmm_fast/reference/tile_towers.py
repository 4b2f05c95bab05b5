"""ReLU towers whose products are of bfloat16, in plain PyTorch: the specification."""

from collections.abc import Sequence

import torch
from torch import Tensor


def _rounded(x: Tensor) -> Tensor:
    return x.bfloat16().to(x.dtype)


def tile_towers(
    impression: Tensor,  # [B, in]
    once: Tensor,  # [G, H], H = the first layers' outputs of all towers
    group: Tensor | None,  # [B] int32, or None: G = 1
    parameters: Sequence[Tensor],  # weight [out, in], bias [out] of each layer, tower after tower
    layers: Sequence[int],  # [K]
) -> Tensor:
    """Returns the logits of K towers, [B, K]; sums are of the inputs' dtype."""
    pairs = list(zip(parameters[::2], parameters[1::2], strict=True))
    x = _rounded(impression)
    added = once.expand(len(x), -1) if group is None else once.index_select(0, group)
    logits, column = [], 0
    for count in layers:
        (first, _), *middle, (last, last_bias) = pairs[:count]
        pairs = pairs[count:]
        own = added[:, column : column + len(first)]
        column += len(first)
        y = _rounded((x @ _rounded(first[:, first.shape[1] - x.shape[1] :]).t() + own).relu())
        for weight, bias in middle:
            y = _rounded((y @ _rounded(weight).t() + bias).relu())
        logits.append(y @ last[0] + last_bias)
    return torch.stack(logits, 1)
