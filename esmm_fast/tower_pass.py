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


def can_pass(layers: Sequence[nn.Module], first: type, inner: type = nn.Linear) -> bool:
    """Whether these are `first`, then ReLU and Linear in turn, as they were made: no hooks,
    no parametrizations, float32 on the CPU, at least one hidden layer."""
    if len(layers) < 3:
        return False
    for i, layer in enumerate(layers):
        kind = nn.ReLU if i % 2 else first if i == 0 else inner
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

    Equivalent to `tower.split_linear`, then ``relu`` and ``linear`` in turn, of each tower. There
    is no second derivative.
    """
    flat = [x for tower in layers for layer in tower for x in layer]
    counts = [len(tower) for tower in layers]
    which = common_of_impression.to(torch.int32)
    return _Pass.apply(common, impression, which, dtype, counts, *flat)  # type: ignore[no-any-return]


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
        with torch.autocast("cpu", enabled=False):
            common, impression = common.to(dtype), impression.to(dtype)
            logits = impression.new_empty(len(which), len(counts), dtype=torch.float32)
            saved = [common, impression, which]
            for k, layers in enumerate(_layers(parameters, counts)):
                *hidden, (last_weight, last_bias) = layers
                x = impression
                for i, (weight, bias) in enumerate(hidden):
                    weight = weight.to(dtype)
                    if i == 0:
                        x = _first(common, impression, which, weight, bias)
                    else:
                        x = ops.biased_relu_(torch.mm(x, weight.t()), bias.unsqueeze(0))
                    saved += [weight, x]
                torch.addmv(last_bias, x.float(), last_weight[0], out=logits[:, k])
                saved.append(last_weight)
        ctx.save_for_backward(*saved)
        ctx.counts = counts
        return logits

    @staticmethod
    def backward(ctx: Any, grad_logits: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "towers: expected a first derivative, got create_graph=True; "
                "in float64 (model.double()) towers have higher ones"
            )
        common, impression, which, *saved = ctx.saved_tensors
        wants = ctx.needs_input_grad
        grads = _InputGradients(common, impression, wants[0], wants[1])
        flat: list[Tensor | None] = []
        with torch.autocast("cpu", enabled=False):
            for k, count in enumerate(ctx.counts):
                own, saved = saved[: 2 * count - 1], saved[2 * count - 1 :]
                flat += _backward(grad_logits[:, k], which, own, grads)
        flat = [g if w else None for g, w in zip(flat, wants[5:], strict=True)]
        return grads.common, grads.impression, None, None, None, *flat


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


class _InputGradients:
    """The gradients of the input that towers share, summed in float32."""

    def __init__(self, common: Tensor, impression: Tensor, wants_common: bool, wants: bool) -> None:
        self.inputs = common, impression
        self.wants = wants_common, wants
        self.sums: list[Tensor | None] = [None, None]

    def add(self, side: int, grad: Tensor, weight: Tensor) -> None:
        if not self.wants[side]:
            return
        total = self.sums[side]
        if total is None:
            self.sums[side] = torch.mm(grad, weight).float()
        elif grad.dtype == torch.float32:
            total.addmm_(grad, weight)
        else:
            total.add_(torch.mm(grad, weight))

    @property
    def common(self) -> Tensor | None:
        return self.sums[0]

    @property
    def impression(self) -> Tensor | None:
        return self.sums[1]


def _backward(
    grad: Tensor,  # [B]
    which: Tensor,  # [B]
    saved: list[Tensor],  # weight and output of each hidden layer, weight of the last
    grads: _InputGradients,
) -> list[Tensor]:
    """Returns the gradients of a tower's weights and biases, first layer first."""
    common, impression = grads.inputs
    last_weight, hidden = saved[-1], list(zip(saved[:-1:2], saved[1:-1:2], strict=True))
    x = hidden[-1][1]
    found = [grad.sum().unsqueeze(0), torch.mv(x.t().float(), grad).unsqueeze(0)]  # from the end
    g = torch.outer(grad, last_weight[0]).to(x.dtype)
    for i in range(len(hidden) - 1, 0, -1):
        weight, out = hidden[i]
        found += [ops.biased_relu_gradient_(g, out)[0], torch.mm(g.t(), hidden[i - 1][1]).float()]
        g = torch.mm(g, weight)
    weight, out = hidden[0]
    split = common.shape[1]
    grad_weight = torch.empty(weight.shape)
    if split == 0:
        grad_bias = ops.biased_relu_gradient_(g, out)[0]
    else:
        once = ops.biased_relu_gradient_(g, out, which, len(common))  # [U, H]
        grad_bias = once.sum(0)
        once = once.to(weight.dtype)
        grad_weight[:, :split] = torch.mm(once.t(), common)
        grads.add(0, once, weight[:, :split])
    grad_weight[:, split:] = torch.mm(g.t(), impression)
    grads.add(1, g, weight[:, split:])
    return [*reversed([*found, grad_bias, grad_weight])]
