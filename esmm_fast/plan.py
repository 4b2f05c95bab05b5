"""Plan: the occurrences of a batch and their transpose, which the operators work on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

_Record = TypeVar("_Record")


def map_tensors(record: _Record, change: Callable[[Any], Any]) -> _Record:
    """Returns a dataclass with `change` applied to its tensors, those in a dict of it, and its
    plan."""
    values = {f.name: getattr(record, f.name) for f in fields(record)}  # type: ignore[arg-type]
    changed = {n: change(v) for n, v in values.items() if isinstance(v, Tensor | Plan)}
    changed |= {n: _mapped(v, change) for n, v in values.items() if isinstance(v, dict)}
    return replace(record, **changed)  # type: ignore[type-var]


def _mapped(tensors: dict[str, Tensor], change: Callable[[Any], Any]) -> dict[str, Any]:
    return {name: change(tensor) for name, tensor in tensors.items()}


@dataclass(repr=False)
class Plan:
    """The occurrences of a batch and their transpose.

    Bags: u * Fc + f for common rows, then U * Fc + b * Fs + f for impressions.

    The transpose lists, for every row that the batch touches, the occurrences that touch it, in
    their order: touched row t has ``occurrence_by_row[segment_ptr[t] : segment_ptr[t + 1]]``.
    """

    rows: Tensor  # [N] int32, row in the joint row space: table base + row of the table
    offsets: Tensor  # [bags + 1] int32, first occurrence of each bag
    weights: Tensor | None  # [N] float32, None: all 1
    bag_of_occurrence: Tensor  # [N] int32
    touched_rows: Tensor  # [T] int32, ascending
    segment_ptr: Tensor  # [T + 1] int32, into occurrence_by_row
    occurrence_by_row: Tensor  # [N] int32, occurrences sorted by row, stable

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Plan:
        """Returns the plan on a device; tensors that are there already are not copied."""
        return map_tensors(self, lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Plan:
        """Returns the plan in page-locked memory, whose copies to a GPU overlap with work."""
        return map_tensors(self, lambda t: t.pin_memory())

    def __repr__(self) -> str:
        return (
            f"Plan(bags={self.offsets.numel() - 1}, N={self.rows.numel()}, "
            f"T={self.touched_rows.numel()})"
        )
