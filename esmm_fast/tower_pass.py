"""One pass through towers and back, by hand: matrix products, and between them one loop each way.

Autograd's own passes through Linear and ReLU write every activation three times and every gradient
twice; here a layer is a product and `ops.biased_relu_`, in place, and gradients are masked and
summed in place. Only what `can_pass` says; `tower.tower_logits` has the plain layers for the rest.

Letters: B impressions, U common rows, K towers, L layers of a tower, H outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import ops

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def pass_dtype(*inputs: Tensor) -> torch.dtype | None:
    """Returns the dtype of the products for these inputs, or None where the plain layers run.

    That is float32, or bfloat16 under autocast; not on CUDA, nor while torch traces.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return None
    if any(type(x) is not Tensor or x.dtype != torch.float32 or not x.is_cpu for x in inputs):
        return None
    if not torch.is_autocast_enabled("cpu"):
        return torch.float32
    dtype = torch.get_autocast_dtype("cpu")
    return dtype if dtype == torch.bfloat16 else None


def can_pass(layers: Sequence[nn.Module], first: type) -> bool:
    """Whether these are `first`, then ReLU and Linear in turn, as they were made: no hooks,
    no parametrizations, float32 on the CPU, at least one hidden layer."""
    if len(layers) < 3:
        return False
    for i, layer in enumerate(layers):
        kind = nn.ReLU if i % 2 else first if i == 0 else nn.Linear
        if type(layer) is not kind or any(getattr(layer, hooks) for hooks in _HOOKS):
            return False
        if i % 2 == 0:
            weight, bias = layer.weight, layer.bias
            for x in (weight, bias):
                if x is None or x.dtype != torch.float32 or not x.is_cpu:
                    return False
    return True


def pass_towers(
    common: Tensor,  # [U, in_common] float32
    impression: Tensor,  # [B, in_impression] float32
    common_of_impression: Tensor,  # [B] int32 or int64
    layers: Sequence[Sequence[tuple[Tensor, Tensor]]],  # [K][L] weight [H, in], bias [H]
    dtype: torch.dtype,
) -> Tensor:
    """Returns the logits of K towers, [B, K] float32; products in `dtype`, the last layer float32.

    The towers' first layers are one product, whose common part is multiplied once per common row.
    Equivalent to `tower.split_linear`, then ``relu`` and ``linear`` in turn, of each tower. There
    is no second derivative.

    Raises:
        IndexError: ``common_of_impression[3] = 4294967296 is outside the 5 common rows``.
    """
    flat = [x for tower in layers for layer in tower for x in layer]
    counts = [len(tower) for tower in layers]
    which = common_of_impression.to(torch.int32)
    if which.dtype != common_of_impression.dtype and not torch.equal(which, common_of_impression):
        b = int((which != common_of_impression).nonzero()[0])
        raise IndexError(
            f"common_of_impression[{b}] = {int(common_of_impression[b])} is outside the "
            f"{len(common)} common rows"
        )
    if dtype == torch.bfloat16 and ops.has_tiles():
        return _TilePass.apply(common, impression, which, counts, *flat)
    return _Pass.apply(common, impression, which, dtype, counts, *flat)


class _TilePass(torch.autograd.Function):
    """The pass in bfloat16 where `ops.tile_towers` runs."""

    @staticmethod
    def forward(
        ctx: Any,
        common: Tensor,
        impression: Tensor,
        which: Tensor,
        counts: list[int],
        *parameters: Tensor,
    ) -> Tensor:
        contiguous = common.contiguous(), impression.contiguous(), which.contiguous()
        parameters = tuple(x.contiguous() for x in parameters)
        with torch._C._AutoDispatchBelowAutograd():
            logits, saved = ops.tile_towers(*contiguous, parameters, counts)
        ctx.save_for_backward(which, saved, *parameters)
        ctx.counts, ctx.common = counts, common.shape
        return logits

    @staticmethod
    def backward(ctx: Any, grad_logits: Tensor) -> Any:
        _refuse_second_derivative()
        which, saved, *parameters = ctx.saved_tensors
        wants = ctx.needs_input_grad
        rows, in_common = ctx.common
        *inputs, grads = ops.tile_towers_gradient(
            grad_logits.contiguous(),
            saved,
            which,
            rows,
            in_common,
            parameters,
            ctx.counts,
            wants_common=wants[0],
            wants_impression=wants[1],
        )
        found = [
            x if w else None for x, w in zip((*inputs, *grads), wants[:2] + wants[4:], strict=True)
        ]
        return *found[:2], None, None, *found[2:]


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        common: Tensor,
        impression: Tensor,
        which: Tensor,
        dtype: torch.dtype,
        counts: list[int],
        *parameters: Tensor,
    ) -> Tensor:
        towers = _layers(parameters, counts)
        sizes = [len(layers[0][1]) for layers in towers]
        with torch.autocast("cpu", enabled=False):
            common, impression = common.to(dtype), impression.to(dtype)
            weight = torch.cat([layers[0][0] for layers in towers]).to(dtype)
            bias = torch.cat([layers[0][1] for layers in towers])
            first = _first(common, impression, which, weight, bias)
            saved = [common, impression, which, weight, first]
            logits = first.new_empty(len(which), len(towers), dtype=torch.float32)
            for k, (layers, x) in enumerate(zip(towers, first.split(sizes, 1), strict=True)):
                for weight, bias in layers[1:-1]:
                    weight = weight.to(dtype)
                    x = ops.biased_relu_(torch.mm(x, weight.t()), bias.unsqueeze(0))
                    saved += [weight, x]
                weight, bias = layers[-1]
                torch.addmv(bias, x.float(), weight[0], out=logits[:, k])
                saved.append(weight)
        ctx.save_for_backward(*saved)
        ctx.counts, ctx.sizes = counts, sizes
        return logits

    @staticmethod
    def backward(ctx: Any, grad_logits: Tensor) -> Any:
        _refuse_second_derivative()
        common, impression, which, weight, first, *saved = ctx.saved_tensors
        split, wants = common.shape[1], ctx.needs_input_grad
        inner: list[list[Tensor]] = []  # of each tower, the gradients of all but its first layer
        with torch.autocast("cpu", enabled=False):
            g = torch.empty_like(first)
            of_tower = zip(
                ctx.counts, first.split(ctx.sizes, 1), g.split(ctx.sizes, 1), strict=True
            )
            for k, (count, x, g_first) in enumerate(of_tower):
                own, saved = saved[: 2 * count - 3], saved[2 * count - 3 :]
                inner.append(_backward(grad_logits[:, k], x, own, g_first))
            grad_common = grad_impression = None
            grad_weight = torch.empty(weight.shape)
            if split:
                once = ops.biased_relu_gradient_(g, first, which, len(common))  # [U, H of all]
                grad_bias = once.sum(0)
                once = once.to(weight.dtype)
                grad_weight[:, :split] = torch.mm(once.t(), common)
                if wants[0]:
                    grad_common = torch.mm(once, weight[:, :split]).float()
            else:
                grad_bias = ops.biased_relu_gradient_(g, first)[0]
            grad_weight[:, split:] = torch.mm(impression.t(), g).t()  # faster than g.t() first
            if wants[1]:
                grad_impression = torch.mm(g, weight[:, split:]).float()
        flat: list[Tensor] = []
        firsts = zip(grad_weight.split(ctx.sizes), grad_bias.split(ctx.sizes), inner, strict=True)
        for own_weight, own_bias, others in firsts:
            flat += [own_weight, own_bias, *others]
        grads = [x if w else None for x, w in zip(flat, wants[5:], strict=True)]
        return grad_common, grad_impression, None, None, None, *grads


def _refuse_second_derivative() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "towers: expected a first derivative, got create_graph=True; "
            "in float64 (model.double()) towers have higher ones"
        )


def _layers(
    parameters: Sequence[Tensor], counts: Sequence[int]
) -> list[list[tuple[Tensor, Tensor]]]:
    pairs = iter(list(zip(parameters[::2], parameters[1::2], strict=True)))
    return [[next(pairs) for _ in range(count)] for count in counts]


def _first(
    common: Tensor, impression: Tensor, which: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """Returns relu(SplitLinear), [B, H]."""
    split = common.shape[1]
    each = torch.mm(impression, weight[:, split:].t())
    if split == 0:
        return ops.biased_relu_(each, bias.unsqueeze(0))
    once = torch.mm(common, weight[:, :split].t()).float().add_(bias)  # [U, H]
    return ops.biased_relu_(each, once, which)


def _backward(
    grad: Tensor,  # [B]
    first: Tensor,  # [B, H], the output of the first layer
    saved: list[Tensor],  # weight and output of each further hidden layer, weight of the last
    grad_first: Tensor,  # [B, H], filled: d(loss)/d(first)
) -> list[Tensor]:
    """Returns the gradients of a tower's weights and biases from the second layer on."""
    outs = [first, *saved[1:-1:2]]
    weights = saved[:-1:2]
    last_weight = saved[-1]
    found = [grad.sum().unsqueeze(0), torch.mv(outs[-1].t().float(), grad).unsqueeze(0)]
    g = torch.outer(grad, last_weight[0]).to(first.dtype)
    for i in range(len(weights) - 1, -1, -1):
        found += [ops.biased_relu_gradient_(g, outs[i + 1])[0], torch.mm(g.t(), outs[i]).float()]
        g = torch.mm(g, weights[i], out=grad_first) if i == 0 else torch.mm(g, weights[i])
    if not weights:
        grad_first.copy_(g)
    return found[::-1]
