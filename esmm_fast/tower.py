"""SplitLinear, which multiplies the common part of its input once per common row, and Tower.

Letters: B impressions, U common rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from .tower_pass import can_pass, pass_dtype, pass_towers


def split_linear(
    common: Tensor,  # [U, in_common]
    impression: Tensor,  # [B, in_impression]
    common_of_impression: Tensor,  # [B] int32 or int64
    weight: Tensor,  # [out, in_common + in_impression]
    bias: Tensor | None,  # [out]
) -> Tensor:
    """Returns `SplitLinear` of these parameters, [B, out]."""
    in_common = weight.shape[1] - impression.shape[1]
    if in_common == 0:
        return linear(impression, weight, bias)
    once = linear(common, weight[:, :in_common], bias)  # [U, out]
    # At least float32: the gradient of a common row sums over its impressions, and in bfloat16 that
    # sum stalls (19 % off for a common row of 756 impressions).
    once = once.to(torch.promote_types(once.dtype, torch.float32))
    each = embedding(common_of_impression, once)  # [B, out]
    if impression.shape[1] == 0:
        return each
    return torch.addmm(each, impression, weight[:, in_common:].t())


def _reset(layer: SplitLinear | nn.Linear, generator: torch.Generator | None = None) -> None:
    """Draws weight and bias from U(-1/sqrt(in), 1/sqrt(in)), as torch.nn.Linear does."""
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    if layer.bias is not None:
        bound = 1 / math.sqrt(layer.weight.shape[1]) if layer.weight.shape[1] else 0.0
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)


class SplitLinear(nn.Module):
    """A linear layer over the concatenation of a common and an impression part, without the concat.

    W [u; v] = W_u u + W_v v: the common part is multiplied once per common row, not per impression.
    In exact arithmetic that is ``Linear(in_common + in_impression, out)`` of
    ``cat([common[common_of_impression], impression], 1)``; in float32 the results differ by about
    3e-6 of their size, under bfloat16 autocast by about 1e-2. The parameters are those of that one
    Linear, so either loads the other's state_dict.

    Args:
        in_common: Size of the common part; 0 means there is none.
        in_impression: Size of the impression part.
        out_features: Size of the output.
        bias: Adds a bias.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Attributes:
        weight: [out, in_common + in_impression], the common columns first.
        bias: [out], or None.

    >>> layer = SplitLinear(3, 2, 4)
    >>> layer(torch.ones(1, 3), torch.ones(5, 2), torch.zeros(5, dtype=torch.int32)).shape
    torch.Size([5, 4])
    """

    def __init__(
        self,
        in_common: int,
        in_impression: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("in_common", in_common, 0),
            ("in_impression", in_impression, 0),
            ("out_features", out_features, 1),
        ):
            check_int(name, value, least)
        self.in_common = in_common
        self.in_impression = in_impression
        self.out_features = out_features
        size = (out_features, in_common + in_impression)
        self.weight = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        self.bias: nn.Parameter | None
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        _reset(self)

    def forward(
        self,
        common: Tensor,  # [U, in_common]
        impression: Tensor,  # [B, in_impression]
        common_of_impression: Tensor,  # [B] int32 or int64, in [0, U)
    ) -> Tensor:
        """Returns the layer's output for each impression, [B, out]."""
        self.check(common, impression)
        return split_linear(common, impression, common_of_impression, self.weight, self.bias)

    def check(self, common: Tensor, impression: Tensor) -> None:
        """Raises ValueError where the inputs do not fit, by name."""
        for name, tensor, size in (
            ("common", common, self.in_common),
            ("impression", impression, self.in_impression),
        ):
            if tensor.dim() != 2 or tensor.shape[1] != size:
                raise ValueError(f"{name}: expected shape [*, {size}], got {list(tensor.shape)}")

    def extra_repr(self) -> str:
        return (
            f"in_common={self.in_common}, in_impression={self.in_impression}, "
            f"out_features={self.out_features}, bias={self.bias is not None}"
        )


class Tower(nn.Sequential):
    """One stage's network: SplitLinear, then ReLU and Linear for each further size, to one logit.

    Its state_dict is that of the plain ``Sequential(Linear, ReLU, Linear, ReLU, ..., Linear)`` over
    the concatenated input. The last layer runs in float32 under autocast too, so that logits are
    not rounded to the few values of a half float.

    Args:
        in_common: Size of the common part of the input.
        in_impression: Size of the impression part.
        hidden: Sizes of the hidden layers; () makes it one linear layer.

    >>> [name for name in Tower(3, 2, (4,)).state_dict()]
    ['0.weight', '0.bias', '2.weight', '2.bias']
    """

    def __init__(
        self, in_common: int, in_impression: int, hidden: Sequence[int] = (360, 200, 80)
    ) -> None:
        sizes = (*_check_hidden(hidden), 1)
        layers: list[nn.Module] = [SplitLinear(in_common, in_impression, sizes[0])]
        for size_in, size_out in pairwise(sizes):
            layers += [nn.ReLU(), nn.Linear(size_in, size_out)]
        super().__init__(*layers)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws all parameters anew, as torch.nn.Linear does."""
        for layer in self:
            if isinstance(layer, SplitLinear | nn.Linear):
                _reset(layer, generator)

    def forward(  # type: ignore[override]
        self,
        common: Tensor,  # [U, in_common]
        impression: Tensor,  # [B, in_impression]
        common_of_impression: Tensor,  # [B] int32 or int64
    ) -> Tensor:
        """Returns the stage's logit for each impression, [B], at least float32."""
        return tower_logits([self], common, impression, common_of_impression).squeeze(1)

    @property
    def first(self) -> SplitLinear:
        """The first layer."""
        return self[0]  # type: ignore[return-value]

    def after_first(self, x: Tensor) -> Tensor:  # [B, hidden[0]], or [B, 1] without hidden
        """Returns the logits [B] from the output of the first layer."""
        if len(self) == 1:
            return at_least_float32(x).squeeze(1)
        *middle, last = list(self)[1:]
        for layer in middle:
            x = layer(x)
        with torch.autocast(x.device.type, enabled=False):
            return at_least_float32(last(x.to(last.weight.dtype))).squeeze(1)  # type: ignore[arg-type]


def tower_logits(
    towers: Sequence[Tower],  # K
    common: Tensor,  # [U, in_common]
    impression: Tensor,  # [B, in_impression]
    common_of_impression: Tensor,  # [B] int32 or int64
) -> Tensor:
    """Returns the logits of K towers over one input, [B, K], at least float32.

    On the CPU, in float32 or bfloat16 autocast, all layers of all towers are one pass
    (`tower_pass`); elsewhere, and while torch traces, `plain_tower_logits`.
    """
    dtype = pass_dtype(common, impression)
    if dtype is None or not all(can_pass(list(tower), SplitLinear) for tower in towers):
        return plain_tower_logits(towers, common, impression, common_of_impression)
    for tower in towers:
        tower.first.check(common, impression)
    layers = [[(m.weight, m.bias) for m in list(tower)[::2]] for tower in towers]
    return pass_towers(common, impression, common_of_impression, layers, dtype)  # type: ignore[arg-type]


def plain_tower_logits(
    towers: Sequence[Tower],  # K
    common: Tensor,  # [U, in_common]
    impression: Tensor,  # [B, in_impression]
    common_of_impression: Tensor,  # [B] int32 or int64
) -> Tensor:
    """Returns `tower_logits` by torch's own layers; the towers' first layers run as one product.

    Equivalent to ``torch.stack([tower(common, impression, common_of_impression) for tower in
    towers], 1)``.
    """
    if len(towers) == 1:
        first = towers[0].first(common, impression, common_of_impression)
        return towers[0].after_first(first).unsqueeze(1)
    first = split_linear(
        common,
        impression,
        common_of_impression,
        torch.cat([tower.first.weight for tower in towers]),
        torch.cat([tower.first.bias for tower in towers]),  # type: ignore[misc]
    )
    firsts = first.split([tower.first.out_features for tower in towers], 1)
    return torch.stack([t.after_first(x) for t, x in zip(towers, firsts, strict=True)], 1)


def at_least_float32(logits: Tensor) -> Tensor:
    """Returns half floats as float32, others as they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def check_int(name: str, value: int, least: int) -> None:
    """Raises where argument `name` is not an int of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected {least} or more, got {value}")


def _check_hidden(hidden: Sequence[int]) -> tuple[int, ...]:
    if isinstance(hidden, int) or not isinstance(hidden, Sequence):
        raise TypeError(f"hidden: expected the sizes of the hidden layers, got {hidden!r}")
    for i, size in enumerate(hidden):
        check_int(f"hidden[{i}]", size, 1)
    return tuple(hidden)
