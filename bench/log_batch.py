"""Batches with the public log's field sizes, bag lengths and groups, for the embedding benches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from esmm_fast import Batch, Field, Schema, reference

# Published: distinct ids, occurrences per bag. The common side's lengths are per common row.
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
IMPRESSIONS_PER_COMMON_ROW = 57.9
ZIPF = 1.05  # exponent of the ids' frequencies, as in public recommendation benchmarks


@dataclass(frozen=True)
class Inputs:
    """One batch, in esmm_fast's form and as lists for nn.EmbeddingBag."""

    batch: Batch
    rows: Tensor  # [N] int64, in the joint row space
    offsets: Tensor  # [bags + 1] int64
    weights: Tensor  # [N] float32

    def __str__(self) -> str:
        touched = len(self.batch.plan.touched_rows)
        return (
            f"B = {len(self.batch.labels)}, U = {self.batch.common}, N = {len(self.rows)}, "
            f"T = {touched}"
        )


def schema(scale: float) -> Schema:
    """Returns the 23 fields with `scale` times the published numbers of ids."""

    def sized(fields: dict[str, tuple[int, float]], side: str) -> list[Field]:
        return [
            Field(name, side, multi=True, rows=max(2, int(ids * scale)))  # type: ignore[arg-type]
            for name, (ids, _) in fields.items()
        ]

    return Schema((*sized(COMMON, "common"), *sized(IMPRESSION, "impression")))


def _zipf(rows: int, count: int, generator: torch.Generator) -> Tensor:
    """Ids with frequency ~ 1 / rank^ZIPF: the inverse of its distribution, as a density."""
    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    power = 1 - ZIPF
    return (
        ((1 + uniform * ((rows + 1.0) ** power - 1)) ** (1 / power) - 1).long().clamp_(max=rows - 1)
    )


def make(
    tables: Schema, impressions: int, seed: int, group: float = IMPRESSIONS_PER_COMMON_ROW
) -> Inputs:
    """Returns a batch of `impressions` in groups of mean size `group`.

    Every value is made from the published means: Poisson bag lengths, Zipf ids, values around 1.
    """
    generator = torch.Generator().manual_seed(seed)
    common = max(1, round(impressions / group))
    lengths, rows = [], []
    for fields, bags in ((COMMON, common), (IMPRESSION, impressions)):
        names = list(fields)
        means = torch.tensor([fields[name][1] for name in names]).expand(bags, -1)
        side_lengths = torch.poisson(means, generator=generator).long()
        field = torch.arange(len(names)).expand(bags, -1).reshape(-1)
        occurrence_field = torch.repeat_interleave(field, side_lengths.reshape(-1))
        side_rows = torch.empty(len(occurrence_field), dtype=torch.long)
        for i, name in enumerate(names):
            mask = occurrence_field == i
            count = int(mask.sum())
            side_rows[mask] = tables.row_bases[name] + _zipf(
                tables.table_rows[name], count, generator
            )
        lengths.append(side_lengths.reshape(-1))
        rows.append(side_rows)
    joint, offsets = (
        torch.cat(rows),
        torch.cat([torch.zeros(1, dtype=torch.long), *lengths]).cumsum(0),
    )
    weights = torch.rand(len(joint), generator=generator) + 0.5
    groups = torch.randint(0, common, (impressions,), generator=generator).sort().values.int()
    batch = Batch(
        reference.batch_plan(joint, offsets, weights), common, groups, torch.zeros(impressions, 2)
    )
    return Inputs(batch, joint, offsets, weights)
