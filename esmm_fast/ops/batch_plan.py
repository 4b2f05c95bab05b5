"""batch_plan: the transpose of a batch's bags, by touched row."""

from typing import Any

import torch
from torch import Tensor

from .._library import operators
from ..plan import Plan

_ANY_ROWS = 2**31 - 1  # num_rows where the caller names none: rows are int32


@torch.library.register_fake("esmm_fast::batch_plan")
def _(rows: Tensor, offsets: Tensor, num_rows: int) -> Any:
    occurrences = rows.shape[0]
    touched = torch.library.get_ctx().new_dynamic_size(min=0)

    def new(size: Any) -> Tensor:
        return rows.new_empty(size, dtype=torch.int32)

    return new(occurrences), new(touched), new(touched + 1), new(occurrences)


def batch_plan(
    rows: Tensor,  # [N] int32 or int64
    offsets: Tensor,  # [bags + 1] int32 or int64
    weights: Tensor | None = None,  # [N] float32
    num_rows: int | None = None,
) -> Plan:
    """Returns the plan of the bags `offsets` over `rows`: the bags and their transpose by row.

    Bag i holds the occurrences ``offsets[i] <= n < offsets[i + 1]``; a bag can be empty. The radix
    sort behind it is stable, so the plan is a function of the arguments alone, whatever the number
    of threads. On CUDA it waits for the device once: its outputs have as many rows as the batch
    touches.

    Args:
        rows: [N] int32 or int64, the row of each occurrence in the joint row space; below
            2^31 - 1.
        offsets: [bags + 1] int32 or int64 on the device of `rows`, ascending from 0 to N.
        weights: [N] float32, the factor of each occurrence, or None (all 1). Passed on as it is.
        num_rows: Rows of all tables together; None takes any row.

    Returns:
        The `Plan`, index tensors int32. Where `rows`, `offsets` are int32 they are passed on, not
        copied.

    Raises:
        IndexError: ``rows[17] = 400012 is outside the table of 400000 rows``.
        ValueError: Offsets that do not begin with 0, descend or do not end at N; a wrong dtype or
            shape; `weights` of another length or dtype.

    Equivalent to `esmm_fast.reference.batch_plan`.

    Three bags, [7, 3], [] and [7]:

    >>> plan = batch_plan(torch.tensor([7, 3, 7]), torch.tensor([0, 2, 2, 3]))
    >>> plan.bag_of_occurrence.tolist()
    [0, 0, 2]
    >>> plan.touched_rows.tolist(), plan.segment_ptr.tolist(), plan.occurrence_by_row.tolist()
    ([3, 7], [0, 1, 3], [1, 0, 2])
    """
    if weights is not None:
        if weights.dtype != torch.float32:
            raise ValueError(f"weights: expected float32, got {weights.dtype}")
        if weights.shape != rows.shape:
            raise ValueError(
                f"weights: expected the shape of rows, {list(rows.shape)}, got "
                f"{list(weights.shape)}"
            )
    bags, touched_rows, segment_ptr, occurrence_by_row = operators.batch_plan(
        rows, offsets, _ANY_ROWS if num_rows is None else num_rows
    )
    return Plan(
        rows=rows.int(),
        offsets=offsets.int(),
        weights=weights,
        bag_of_occurrence=bags,
        touched_rows=touched_rows,
        segment_ptr=segment_ptr,
        occurrence_by_row=occurrence_by_row,
    )
