"""Batches on the GPU with the public log's field sizes, bag lengths and groups, from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from esmm_fast import Batch, Field, Schema, ops

# Published: distinct ids, occurrences per bag; the common side's lengths are per common row.
COMMON = {
    "101": (294_882, 1.0), "109_14": (12_204, 58.0), "110_14": (2_545_609, 210.3),
    "127_14": (396_179, 129.2), "150_14": (99_011, 114.3), "121": (97, 0.73), "122": (13, 0.73),
    "124": (2, 0.73), "125": (7, 0.73), "126": (3, 0.35), "127": (3, 0.73), "128": (2, 0.73),
    "129": (4, 0.5),
}  # fmt: skip
IMPRESSION = {
    "205": (3_168_671, 1.0), "206": (8_601, 1.0), "207": (610_380, 1.0), "210": (98_714, 6.1),
    "216": (209_990, 0.711), "508": (7_753, 0.7), "509": (388_805, 0.22), "702": (143_919, 0.22),
    "853": (86_895, 1.4), "301": (3, 1.0),
}  # fmt: skip
PER_COMMON_ROW = 57.9  # published: impressions per common row
ZIPF = 1.05  # exponent of the ids' frequencies, as in public recommendation benchmarks


def schema() -> Schema:
    """Returns the 23 fields with the published numbers of ids."""
    sides = (("common", COMMON), ("impression", IMPRESSION))
    return Schema(
        tuple(
            Field(name, side, multi=True, rows=rows)  # type: ignore[arg-type]
            for side, fields in sides
            for name, (rows, _) in fields.items()
        )
    )


@dataclass(frozen=True)
class Made:
    """A batch, and what to call it."""

    batch: Batch
    group: float  # mean impressions per common row
    ids: str

    def __str__(self) -> str:
        plan = self.batch.plan
        return (
            f"B={len(self.batch.labels)} U={self.batch.common} N={len(plan.rows)} "
            f"T={len(plan.touched_rows)} {self.ids}"
        )


def make(
    impressions: int,
    seed: int,
    group: float = PER_COMMON_ROW,
    ids: str = "zipf",
    device: str = "cuda",
) -> Made:
    """Returns a batch of `impressions` in groups of mean size `group`; `ids` zipf or uniform."""
    generator = torch.Generator(device).manual_seed(seed)

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator, device=device, dtype=torch.float64)

    common = max(1, round(impressions / group))
    lengths, rows, base = [], [], 0
    for fields, units in ((COMMON, common), (IMPRESSION, impressions)):
        sizes = torch.tensor([f[0] for f in fields.values()], device=device)
        means = torch.tensor([f[1] for f in fields.values()], device=device)
        bases = base + sizes.cumsum(0) - sizes
        base += int(sizes.sum())
        side = torch.poisson(means.expand(units, -1), generator=generator).long().reshape(-1)
        field = torch.arange(len(fields), device=device).repeat(units).repeat_interleave(side)
        size = sizes[field].double()
        if ids == "uniform":
            drawn = uniform(len(field)) * size
        else:  # the inverse of the distribution function, as a density
            power = 1 - ZIPF
            within = 1 + uniform(len(field)) * ((size + 1) ** power - 1)
            drawn = within ** (1 / power) - 1
        lengths.append(side)
        rows.append(bases[field] + torch.minimum(drawn.long(), sizes[field] - 1))
    joint = torch.cat(rows)
    offsets = torch.cat([joint.new_zeros(1), *lengths]).cumsum(0)
    weights = uniform(len(joint)).float() + 0.5
    plan = ops.batch_plan(joint.int(), offsets.int(), weights, num_rows=base)
    groups = (uniform(impressions) * common).long().sort().values.int()
    click = (uniform(impressions) < 0.0389).float()
    conversion = click * (uniform(impressions) < 0.005).float()
    batch = Batch(plan, common, groups, torch.stack([click, conversion], 1))
    return Made(batch, group, ids)
