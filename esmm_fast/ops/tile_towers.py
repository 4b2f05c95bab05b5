"""tile_towers: ReLU towers in bfloat16 on a processor's matrix tiles, forward and back."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _library

_ops = torch.ops.esmm_fast


def has_tiles() -> bool:
    """Whether `tile_towers` runs here: the processor has matrix tiles for bfloat16 (AMX), the
    library was built with them, and `set_isa` has not forced another instruction set."""
    return _library.has_tiles()


def tile_towers(
    impression: Tensor,  # [B, in] float32
    once: Tensor,  # [G, H] float32, H = the first layers' outputs of all towers
    group: Tensor | None,  # [B] int32, or None: G = 1
    parameters: Sequence[Tensor],  # weight [out, in], bias [out] of each layer, tower after tower
    layers: Sequence[int],  # [K]
) -> tuple[Tensor, Tensor]:
    """Returns the logits of K towers, [B, K] float32, and what `tile_towers_gradient` reads.

    Tower by tower: ``x = relu(impression W^T + once[group])``, then ``relu(x W^T + b)``, then
    ``x w + b``. Products are of bfloat16 (inputs, weights and the hidden layers' outputs are
    rounded), sums and the last layer float32. A NaN stays. Outside autograd: `tower_pass` is the
    function around it.

    Args:
        impression: [B, in] float32, contiguous, on the CPU.
        once: [G, H] float32: what the first layers of all towers, side by side, add.
        group: [B] int32: the row of `once` of each impression.
        parameters: Weight and bias of every layer, tower after tower. A first weight may have more
            columns than `in`: its last ones count; its bias is not read. A tower's last layer has
            one output.
        layers: How many layers each tower has, the last included: 2 or more.

    Equivalent to `esmm_fast.reference.tile_towers`. The same bits for any number of threads.

    Raises:
        IndexError: ``group[3] = 7 is outside the 5 rows of once``.
        ValueError: Shapes and dtypes, by name; a processor without matrix tiles.
    """
    return _ops.tile_towers.default(impression, once, group, list(parameters), list(layers))


def tile_towers_gradient(
    grad_logits: Tensor,  # [B, K]
    saved: Tensor,
    group: Tensor | None,  # [B] int32
    num_groups: int,
    in_impression: int,
    parameters: Sequence[Tensor],
    layers: Sequence[int],
    wants_impression: bool = True,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Returns the gradients of impression, [B, in], of once, [G, H], and of the parameters.

    All are float32; gradients between layers are bfloat16. The parameters' are those of each weight
    and bias but the first layers' biases. Of a first weight only the last `in` columns are written.

    Args:
        grad_logits: [B, K] float32, contiguous.
        saved: What `tile_towers` returned.
        group: As there.
        num_groups: G.
        in_impression: in.
        parameters: As there, unchanged since.
        layers: As there.
        wants_impression: False leaves the first gradient out, [0, in].
    """
    return _ops.tile_towers_gradient.default(
        grad_logits,
        saved,
        group,
        num_groups,
        in_impression,
        list(parameters),
        list(layers),
        wants_impression,
    )


def _padded(size: Any) -> Any:
    return (size + 31) // 32 * 32


@torch.library.register_fake("esmm_fast::tile_towers")
def _(
    impression: Tensor, once: Tensor, group: Tensor | None, parameters: Any, layers: Any
) -> tuple[Tensor, Tensor]:
    width, at = _padded(impression.shape[1]), 0
    for count in layers:
        width += sum(_padded(x.shape[0]) for x in parameters[at : at + 2 * count - 2 : 2])
        at += 2 * count
    rows = (impression.shape[0] + 255) // 256 * 256
    logits = impression.new_empty(impression.shape[0], len(layers))
    return logits, impression.new_empty(rows * width, dtype=torch.bfloat16)


@torch.library.register_fake("esmm_fast::tile_towers_gradient")
def _(
    grad_logits: Tensor,
    saved: Tensor,
    group: Tensor | None,
    num_groups: Any,
    in_impression: Any,
    parameters: Any,
    layers: Any,
    wants_impression: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    firsts, at, grads = 0, 0, []
    for count in layers:
        own = parameters[at : at + 2 * count]
        firsts += own[0].shape[0]
        grads += [grad_logits.new_empty(x.shape) for i, x in enumerate(own) if i != 1]
        at += 2 * count
    rows = grad_logits.shape[0] if wants_impression else 0
    return (
        grad_logits.new_empty(rows, in_impression),
        grad_logits.new_empty(num_groups, firsts),
        grads,
    )
