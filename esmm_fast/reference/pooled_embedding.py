"""Pooling of every bag of a batch in plain PyTorch: the specification of ops.pooled_embedding."""

from torch import Tensor

from ..plan import Plan


def pooled_embedding(
    weight: Tensor,  # [R, D]
    plan: Plan,
    common_bags: int,
    mean: bool = False,
) -> tuple[Tensor, Tensor]:
    """Returns each bag's weighted sum (or mean), [common_bags, D] and [bags - common_bags, D]."""
    picked = weight[plan.rows.long()]
    if plan.weights is not None:
        picked = picked * plan.weights.to(weight.dtype).unsqueeze(1)
    bags = plan.offsets.numel() - 1
    pooled = weight.new_zeros(bags, weight.shape[1]).index_add(
        0, plan.bag_of_occurrence.long(), picked
    )
    if mean:
        pooled = pooled / plan.offsets.diff().clamp(min=1).unsqueeze(1)
    return pooled[:common_bags], pooled[common_bags:]
