"""ReLU towers whose products are of bfloat16, in plain PyTorch: the specification."""

from collections.abc import Sequence

import torch
from torch import Tensor


def _rounded(x: Tensor) -> Tensor:
    return x.bfloat16().to(x.dtype)


def tile_towers(
    common: Tensor,  # [U, in_common]
    impression: Tensor,  # [B, in_impression]
    group: Tensor,  # [B]
    parameters: Sequence[Tensor],  # weight [out, in], bias [out] of each layer, tower after tower
    layers: Sequence[int],  # [K]
) -> Tensor:
    """Returns the logits of K towers, [B, K]; sums are of the inputs' dtype."""
    pairs = iter(list(zip(parameters[::2], parameters[1::2], strict=True)))
    split, logits = common.shape[1], []
    for count in layers:
        (first, first_bias), *middle, (last, last_bias) = [next(pairs) for _ in range(count)]
        own = _rounded(impression) @ _rounded(first[:, split:]).t()
        if split:
            once = _rounded(common) @ _rounded(first[:, :split]).t() + first_bias
            own = own + once.index_select(0, group)
        else:
            own = own + first_bias
        y = _rounded(own.relu())
        for weight, bias in middle:
            y = _rounded((y @ _rounded(weight).t() + bias).relu())
        logits.append(y @ last[0] + last_bias)
    return torch.stack(logits, 1)
