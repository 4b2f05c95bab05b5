"""plan_parts: the plan of a batch in parts, for tables that do not all lie in one buffer."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import reference
from .._library import operators
from ..plan import Plan


class FieldPart(NamedTuple):
    """Where a field's rows lie: the part, and its table's rows in the joint row space."""

    part: int
    first: int  # the first row of its table
    end: int  # behind the last one
    shift: int  # a row of the joint row space minus this is the part's row


@torch.library.register_fake("esmm_fast::plan_parts")
def _(
    rows: Tensor,
    offsets: Tensor,
    segment_ptr: Tensor,
    occurrence_by_row: Tensor,
    common_bags: int,
    common_fields: list[int],
    impression_fields: list[int],
    parts: int,
) -> Any:
    n, touched = rows.shape[0], segment_ptr.shape[0] - 1

    def new(size: Any) -> Tensor:
        return rows.new_empty(size, dtype=torch.int32)

    whole = new(n), new(n), new(offsets.shape[0] - 1 + parts), new(n)
    by_row = new(touched), new(touched + parts), new(n)
    return *whole, *by_row, rows.new_empty((2, parts), dtype=torch.int64, device="cpu")


def _by_reference(
    rows: Tensor,
    offsets: Tensor,
    segment_ptr: Tensor,
    occurrence_by_row: Tensor,
    common_bags: int,
    common_fields: list[int],
    impression_fields: list[int],
    parts: int,
) -> Any:
    bags = torch.arange(len(offsets) - 1, device=rows.device).repeat_interleave(offsets.diff())
    source = torch.arange(len(rows), device=rows.device, dtype=torch.int32)
    whole = Plan(rows, offsets, source, bags.int(), rows, segment_ptr, occurrence_by_row)
    common, impression = (
        [FieldPart(*numbers[i : i + 4]) for i in range(0, len(numbers), 4)]
        for numbers in (common_fields, impression_fields)
    )
    found = reference.plan_parts(whole, common_bags, common, impression, parts)
    columns = (
        [part.rows for part in found],
        [part.weights for part in found],
        [part.offsets for part in found],
        [part.bag_of_occurrence for part in found],
        [part.touched_rows for part in found],
        [part.segment_ptr for part in found],
        [part.occurrence_by_row for part in found],
    )
    sizes = [[len(part.rows) for part in found], [len(part.touched_rows) for part in found]]
    return *(torch.cat(column) for column in columns), torch.tensor(sizes)  # type: ignore[arg-type]


torch.library.impl("esmm_fast::plan_parts", "CUDA")(_by_reference)


def plan_parts(
    plan: Plan,
    common_bags: int,
    common_fields: Sequence[FieldPart],
    impression_fields: Sequence[FieldPart],
    parts: int,
) -> list[Plan]:
    """Returns a plan for each part: the bags of its fields, rows and occurrences numbered from 0.

    Occurrences, bags and touched rows keep their order, so that sums over a part have the bits of
    the same sums over the whole. On CUDA the reference
    does the work, by torch's own sorts.

    Args:
        plan: The whole. A gradient of a part's `weights` reaches `plan.weights`.
        common_bags: How many of the first bags belong to common rows.
        common_fields: Each field of the common rows, in bag order.
        impression_fields: Each field of the impressions, in bag order.
        parts: P; a part can have no field.

    Raises:
        IndexError: ``rows[17] = 412 is outside its field's table, rows 20 to 49`` (not on CUDA).
        ValueError: A plan whose tensors do not belong together; an argument of the wrong shape or
            dtype.

    Equivalent to `esmm_fast.reference.plan_parts`.

    Two impressions of two fields, whose tables are rows 0 to 6 and 7 to 9:

    >>> from esmm_fast.reference import batch_plan
    >>> plan = batch_plan(torch.tensor([5, 4, 9, 8]), torch.tensor([0, 2, 3, 3, 4]))
    >>> fields = [FieldPart(0, 0, 7, shift=0), FieldPart(1, 7, 10, shift=7)]
    >>> first, second = plan_parts(plan, 0, [], fields, 2)
    >>> first.rows.tolist(), first.offsets.tolist()
    ([5, 4], [0, 2, 2])
    >>> second.rows.tolist(), second.offsets.tolist(), second.touched_rows.tolist()
    ([2, 1], [0, 1, 2], [1, 2])
    """
    rows, source, offsets, bags, touched, segments, by_row, sizes = operators.plan_parts(
        plan.rows,
        plan.offsets,
        plan.segment_ptr,
        plan.occurrence_by_row,
        common_bags,
        [number for field in common_fields for number in field],
        [number for field in impression_fields for number in field],
        parts,
    )
    weights = None if plan.weights is None else plan.weights.index_select(0, source)
    occurrences, touched_rows = sizes.tolist()
    bags_of = [0] * parts
    for count, fields in (
        (common_bags, common_fields),
        (plan.offsets.shape[0] - 1 - common_bags, impression_fields),
    ):
        for field in fields:
            bags_of[field.part] += count // len(fields)
    pieces = (
        rows.split(occurrences),
        offsets.split([n + 1 for n in bags_of]),
        [None] * parts if weights is None else weights.split(occurrences),
        bags.split(occurrences),
        touched.split(touched_rows),
        segments.split([n + 1 for n in touched_rows]),
        by_row.split(occurrences),
    )
    return [Plan(*part) for part in zip(*pieces, strict=True)]
