"""The plan of a batch in parts, in plain PyTorch: one plan for each part, over its fields' bags."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..plan import Plan
from .batch_plan import batch_plan


def plan_parts(
    plan: Plan,
    common_bags: int,
    common_fields: Sequence[tuple[int, int, int, int]],
    impression_fields: Sequence[tuple[int, int, int, int]],
    parts: int,
) -> list[Plan]:
    """Returns the plan of each part; a field is (part, first row, end row, shift).

    Bags [0, common_bags) belong to `common_fields` in turn, the others to `impression_fields`. A
    part keeps the order of its bags and occurrences, and its rows are `shift` lower.

    >>> plan = batch_plan(torch.tensor([5, 4, 9, 8]), torch.tensor([0, 2, 3, 3, 4]))
    >>> first, second = plan_parts(plan, 0, [], [(0, 0, 7, 0), (1, 7, 10, 7)], 2)
    >>> first.rows.tolist(), first.offsets.tolist()
    ([5, 4], [0, 2, 2])
    >>> second.rows.tolist(), second.offsets.tolist(), second.touched_rows.tolist()
    ([2, 1], [0, 1, 2], [1, 2])
    """
    bags = plan.offsets.numel() - 1
    device = plan.rows.device
    fields = torch.tensor([*common_fields, *impression_fields], device=device).reshape(-1, 4)
    place = torch.arange(bags, device=device)
    field_of_bag = torch.where(
        place < common_bags,
        place % max(len(common_fields), 1),
        len(common_fields) + (place - common_bags) % max(len(impression_fields), 1),
    )
    part_of_bag, shift_of_bag = fields[field_of_bag, 0], fields[field_of_bag, 3]
    bag_of_occurrence = plan.bag_of_occurrence.long()
    found = []
    for part in range(parts):
        chosen: Tensor = part_of_bag[bag_of_occurrence] == part  # [N]
        rows = (plan.rows - shift_of_bag[bag_of_occurrence])[chosen]
        lengths = plan.offsets.diff()[part_of_bag == part]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        found.append(
            batch_plan(rows, offsets, None if plan.weights is None else plan.weights[chosen])
        )
    return found
