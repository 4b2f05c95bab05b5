"""GradientQueue: gradients of pooled bags that wait for a fused optimizer; the op that fills it.

The queue's tensor, not the queue, goes through autograd and torch.compile: it holds the queue's
number, and the op `pooled_embedding_keep_gradient` declares that it mutates it, so that no compiler
drops, repeats or reorders the call.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ._library import operators


@dataclass
class KeptGradient:
    """The gradient of a batch's pooled bags, and the plan from there to the touched rows."""

    grad_common: Tensor  # [common bags, D]
    grad_impression: Tensor  # [impression bags, D]
    weights: Tensor | None  # [N]
    bag_of_occurrence: Tensor  # [N] int32
    touched_rows: Tensor  # [T] int32
    segment_ptr: Tensor  # [T + 1] int32
    occurrence_by_row: Tensor  # [N] int32

    def to(self, convert: Callable[[Tensor], Tensor]) -> KeptGradient:
        """Returns this gradient with floats converted; the plan follows to their device."""

        def follow(tensor: Tensor) -> Tensor:
            return tensor.to(grad_common.device)

        grad_common = convert(self.grad_common)
        return KeptGradient(
            grad_common,
            convert(self.grad_impression),
            None if self.weights is None else convert(self.weights),
            follow(self.bag_of_occurrence),
            follow(self.touched_rows),
            follow(self.segment_ptr),
            follow(self.occurrence_by_row),
        )

    def row_gradients(self) -> Tensor:
        """Returns the gradient of each touched row, [T, D]."""
        return self._by_row(operators.pooled_embedding_row_gradients)

    def squared_norm(self) -> float:
        """Returns the sum of the squares of `row_gradients()`, in float64."""
        return float(self._by_row(operators.pooled_embedding_squared_norm))

    def expect_finite(self) -> None:
        """Raises where a number of the gradient or of the weights is not finite."""
        for name in ("grad_common", "grad_impression", "weights"):
            values = getattr(self, name)
            if values is None or values.numel() == 0:
                continue
            if not math.isfinite(float(torch.linalg.vector_norm(values, math.inf))):
                place = torch.isfinite(values).logical_not().nonzero()[0].tolist()
                raise ValueError(
                    f"{name}{place} = {float(values[tuple(place)])}: expected finite numbers; "
                    "nothing was updated"
                )

    def _by_row(self, op: Any) -> Tensor:
        bags = self.grad_common, self.grad_impression, self.weights, self.bag_of_occurrence
        return op(*bags, self.segment_ptr, self.occurrence_by_row)

    def _same_plan(self, other: KeptGradient) -> bool:
        def same(a: Tensor | None, b: Tensor | None) -> bool:
            if a is None or b is None:
                return a is b
            return a.data_ptr() == b.data_ptr() and a.shape == b.shape

        return (
            self.grad_common.shape == other.grad_common.shape
            and same(self.weights, other.weights)
            and same(self.bag_of_occurrence, other.bag_of_occurrence)
            and same(self.occurrence_by_row, other.occurrence_by_row)
        )


def merged(entries: list[KeptGradient]) -> KeptGradient:
    """Returns the sum of `entries`: bag by bag where they share a plan, else by a joint plan."""
    first, *others = entries
    if not others:
        return first
    if all(first._same_plan(other) for other in others):
        return replace(
            first,
            grad_common=torch.stack([e.grad_common for e in entries]).sum(0),
            grad_impression=torch.stack([e.grad_impression for e in entries]).sum(0),
        )
    grads = [g for e in entries for g in (e.grad_common, e.grad_impression)]
    bag_bases = [
        0,
        *itertools.accumulate(len(e.grad_common) + len(e.grad_impression) for e in entries),
    ]
    bases = [0, *itertools.accumulate(len(e.bag_of_occurrence) for e in entries)]
    rows = torch.cat(
        [torch.repeat_interleave(e.touched_rows, e.segment_ptr.diff()) for e in entries]
    )
    one_bag = rows.new_tensor([0, len(rows)])
    _, touched, segment_ptr, order = operators.batch_plan(rows, one_bag, 2**31 - 1)
    places = torch.cat(
        [e.occurrence_by_row + base for e, base in zip(entries, bases, strict=False)]
    )
    weights = None
    if any(e.weights is not None for e in entries):
        ones = [first.grad_common.new_ones(len(e.bag_of_occurrence)) for e in entries]
        weights = torch.cat(
            [one if e.weights is None else e.weights for e, one in zip(entries, ones, strict=True)]
        )
    return KeptGradient(
        first.grad_common[:0],
        torch.cat(grads),
        weights,
        torch.cat([e.bag_of_occurrence + b for e, b in zip(entries, bag_bases, strict=False)]),
        touched,
        segment_ptr,
        places[order.long()],
    )


_queues: weakref.WeakValueDictionary[int, GradientQueue] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


class GradientQueue:
    """What waits for one optimizer to update one group of tables.

    Attributes:
        tensor: [1] int64 on the CPU: the queue's number.
        entries: The gradients that wait, oldest first.
        waited_for: A foreign optimizer that has stepped since the oldest of them came (see optim).
    """

    def __init__(self, owner: Any) -> None:
        self._number = next(_numbers)
        self.tensor = torch.tensor([self._number])
        self.entries: list[KeptGradient] = []
        self.waited_for: int | None = None
        self._carriers: list[nn.Parameter] = []
        self._owner = weakref.ref(owner)
        _queues[self._number] = self

    @property
    def owner(self) -> Any:
        """The optimizer that takes the gradients, or None if it no longer exists."""
        return self._owner()

    def retire(self) -> None:
        """Drops what waits and takes no more: the tables have another queue, or none."""
        self.clear()
        _queues.pop(self._number, None)

    def put(self, entry: KeptGradient) -> None:
        if self.owner is None:
            raise RuntimeError(
                "these EmbeddingTables were handed to an esmm_fast.optim optimizer that no longer "
                "exists, so nothing would ever apply this gradient. Keep the optimizer, make a new "
                "one, or call tables.unfuse() to train them with an optimizer of torch."
            )
        self.entries.append(entry)

    def clear(self) -> None:
        self.entries.clear()
        self._carriers.clear()
        self.waited_for = None

    def squared_norm(self) -> float:
        """Returns the squared norm over the touched rows of all that waits together."""
        return merged(self.entries).squared_norm()

    def scale(self, factor: float) -> None:
        """Multiplies what waits by `factor`."""
        self._carriers.clear()
        self.entries[:] = [
            replace(
                entry,
                grad_common=entry.grad_common * factor,
                grad_impression=entry.grad_impression * factor,
            )
            for entry in self.entries
        ]

    def carriers(self) -> list[nn.Parameter]:
        """Parameters whose `.grad` are the waiting gradients themselves.

        torch.amp.GradScaler looks for infinities in, and scales, the `.grad` of an optimizer's
        parameters in place; through these it reaches the gradients by bag. Empty while nothing
        waits.
        """
        for entry in self.entries[len(self._carriers) // 2 :]:
            entry.grad_common = (
                entry.grad_common.clone()
            )  # it may be shared; the carrier's is written
            entry.grad_impression = entry.grad_impression.clone()
            for grad in (entry.grad_common, entry.grad_impression):
                carrier = nn.Parameter(grad.new_zeros(1).expand(grad.shape))
                carrier.grad = grad
                self._carriers.append(carrier)
        return self._carriers

    def convert(self, convert: Callable[[Tensor], Tensor]) -> None:
        """Applies a module's `.to()` to what waits."""
        self._carriers.clear()
        self.entries[:] = [entry.to(convert) for entry in self.entries]


@torch.library.impl("esmm_fast::pooled_embedding_keep_gradient", "CompositeExplicitAutograd")
def _keep_gradient(
    queue: Tensor,
    grad_common: Tensor,
    grad_impression: Tensor,
    weights: Tensor | None,
    bag_of_occurrence: Tensor,
    touched_rows: Tensor,
    segment_ptr: Tensor,
    occurrence_by_row: Tensor,
    copy: bool,
) -> None:
    # `queue` is declared as mutated but never written: its version then stays, and several lookups
    # of one step, each of which saved it for its backward pass, do not invalidate each other.
    # (torch.compile's debugging backends still write it back: two compiled calls before one
    # backward pass raise there; inductor calls the op in place.)
    found = _queues.get(int(queue[0]))
    if found is None:
        raise RuntimeError(
            "the EmbeddingTables whose backward pass this is no longer exist or have left their "
            "optimizer since the forward pass (unfuse(), or a new optimizer)"
        )
    tensors = (
        grad_common,
        grad_impression,
        weights,
        bag_of_occurrence,
        touched_rows,
        segment_ptr,
        occurrence_by_row,
    )

    def own(tensor: Tensor | None) -> Any:
        # Compiled code reuses the memory of an argument after its last use.
        if tensor is None:
            return None
        tensor = tensor.detach()
        return tensor.clone(memory_format=torch.contiguous_format) if copy else tensor.contiguous()

    found.put(KeptGradient(*[own(tensor) for tensor in tensors]))


@torch.library.register_fake("esmm_fast::pooled_embedding_keep_gradient")
def _(*args: Any) -> None:
    return None
