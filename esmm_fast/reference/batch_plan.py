"""The plan of a batch in plain PyTorch: the transpose of its bags, by touched row."""

import torch
from torch import Tensor

from ..plan import Plan


def batch_plan(rows: Tensor, offsets: Tensor, weights: Tensor | None = None) -> Plan:
    """Returns the plan of bags `offsets` [bags + 1] over `rows` [N] in the joint row space.

    >>> plan = batch_plan(torch.tensor([7, 3, 7]), torch.tensor([0, 2, 2, 3]))
    >>> plan.touched_rows.tolist(), plan.segment_ptr.tolist(), plan.occurrence_by_row.tolist()
    ([3, 7], [0, 1, 3], [1, 0, 2])
    """
    sorted_rows, order = torch.sort(rows, stable=True)
    touched, counts = torch.unique_consecutive(sorted_rows, return_counts=True)
    bags = torch.arange(offsets.numel() - 1, device=rows.device)
    return Plan(
        rows=rows.int(),
        offsets=offsets.int(),
        weights=weights,
        bag_of_occurrence=torch.repeat_interleave(bags, offsets.diff()).int(),
        touched_rows=touched.int(),
        segment_ptr=torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int(),
        occurrence_by_row=order.int(),
    )
