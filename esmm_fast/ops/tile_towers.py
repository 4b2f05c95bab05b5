"""tile_towers: ReLU towers in bfloat16 on a processor's matrix tiles, forward and back."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._library import has_tiles as _has_tiles
from .._library import operators


def has_tiles() -> bool:
    """Whether `tile_towers` runs here: the processor has matrix tiles for bfloat16 (AMX), the
    library was built with them, and `set_isa` has not forced another instruction set."""
    return _has_tiles()


def tile_towers(
    common: Tensor,  # [U, in_common] float32
    impression: Tensor,  # [B, in_impression] float32
    group: Tensor,  # [B] int32
    parameters: Sequence[Tensor],  # weight [out, in], bias [out] of each layer, tower after tower
    layers: Sequence[int],  # [K]
) -> tuple[Tensor, Tensor]:
    """Returns the logits of K towers, [B, K] float32, and what `tile_towers_gradient` reads.

    Products are of bfloat16: inputs, weights and the outputs of hidden layers are rounded. Sums,
    the common rows' part of the first layers and the last layer are float32. A NaN stays. Outside
    autograd: `tower_pass` has the function around it.

    Args:
        common: [U, in_common] float32, contiguous, on the CPU; in_common may be 0.
        impression: [B, in_impression] float32.
        group: [B] int32: the common row of each impression; not read where in_common is 0.
        parameters: Weight and bias of every layer, tower after tower, float32. A first layer has
            in_common + in_impression inputs, a last one one output.
        layers: How many layers each tower has, the last included: 2 or more.

    Equivalent to `esmm_fast.reference.tile_towers`. The same bits for any number of threads.

    Raises:
        IndexError: ``group[3] = 7 is outside the 5 rows of common``.
        ValueError: Shapes and dtypes, by name; a processor without matrix tiles.
    """
    return operators.tile_towers(common, impression, group, list(parameters), list(layers))


def tile_towers_gradient(
    grad_logits: Tensor,  # [B, K]
    saved: Tensor,
    group: Tensor,  # [B] int32
    common_rows: int,
    in_common: int,
    parameters: Sequence[Tensor],
    layers: Sequence[int],
    wants_common: bool = True,
    wants_impression: bool = True,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Returns the gradients of common, of impression, and of each parameter, all float32.

    Gradients between layers are bfloat16, those of a common row are summed in float32 first.

    Args:
        grad_logits: [B, K] float32, contiguous.
        saved: What `tile_towers` returned.
        group: As there.
        common_rows: U.
        in_common: The common rows' inputs.
        parameters: As there, unchanged since.
        layers: As there.
        wants_common: False leaves the first gradient out, [0, in_common].
        wants_impression: False leaves the second one out, [0, in_impression].
    """
    wants = wants_common, wants_impression
    return operators.tile_towers_gradient(
        grad_logits, saved, group, common_rows, in_common, list(parameters), list(layers), *wants
    )


def _rows_of(size: Any) -> Any:
    return (size + 255) // 256 * 256


def _padded(size: Any) -> Any:
    return (size + 31) // 32 * 32


@torch.library.register_fake("esmm_fast::tile_towers")
def _(common: Tensor, impression: Tensor, group: Tensor, parameters: Any, layers: Any) -> Any:
    width, at = _padded(impression.shape[1]), 0
    for count in layers:
        width += sum(_padded(x.shape[0]) for x in parameters[at : at + 2 * count - 2 : 2])
        at += 2 * count
    size = _rows_of(impression.shape[0]) * width
    if common.shape[1]:
        size += _rows_of(common.shape[0]) * _padded(common.shape[1])
    logits = impression.new_empty(impression.shape[0], len(layers))
    return logits, impression.new_empty(size, dtype=torch.bfloat16)


@torch.library.register_fake("esmm_fast::tile_towers_gradient")
def _(
    grad_logits: Tensor,
    saved: Tensor,
    group: Tensor,
    common_rows: Any,
    in_common: Any,
    parameters: Any,
    layers: Any,
    wants_common: bool,
    wants_impression: bool,
) -> Any:
    rows = grad_logits.shape[0] if wants_impression else 0
    return (
        grad_logits.new_empty(common_rows if wants_common else 0, in_common),
        grad_logits.new_empty(rows, parameters[0].shape[1] - in_common),
        [grad_logits.new_empty(x.shape) for x in parameters],
    )
