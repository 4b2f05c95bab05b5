"""A small model over EmbeddingTables and random batches for it, shared by two test files."""

from typing import Any

import torch
from torch import Tensor, nn

from esmm_fast import Batch, EmbeddingTables, Field, Schema, reference

ROWS = {"user": 20, "shop": 6, "item": 30}
SCHEMA = Schema(
    (
        Field("user", side="common", rows=20),
        Field("shop", side="common", rows=6),
        Field("item", rows=30),
        Field("shop_of_item", table="shop", rows=6),
    )
)


def make_batch(
    seed: int, common: int = 3, impressions: int = 7, dtype: torch.dtype = torch.float32
) -> Batch:
    """Returns a batch with bags of 0 to 4 occurrences and random weights."""
    generator = torch.Generator().manual_seed(seed)
    fields = [f.table_name for f in SCHEMA.common] * common
    fields += [f.table_name for f in SCHEMA.impression] * impressions
    rows, lengths = [], []
    for table in fields:
        lengths.append(int(torch.randint(0, 5, (), generator=generator)))
        picked = torch.randint(0, ROWS[table], (lengths[-1],), generator=generator)
        rows.append(SCHEMA.row_bases[table] + picked)
    joint = torch.cat(rows) if rows else torch.zeros(0, dtype=torch.long)
    weights = torch.rand(len(joint), generator=generator, dtype=dtype) + 0.5
    return Batch(
        reference.batch_plan(joint, torch.tensor([0, *lengths]).cumsum(0), weights),
        common,
        torch.randint(0, max(common, 1), (impressions,), generator=generator).int(),
        torch.rand(impressions, 2, generator=generator, dtype=dtype).round(),
    )


class TableModel(nn.Module):
    """Two layers on the pooled fields of an impression and its common row."""

    def __init__(self, dim: int = 18, *, towers_seed: int = 1, **options: object) -> None:
        super().__init__()
        self.tables = EmbeddingTables(SCHEMA, dim, init_std=0.3, **options)  # type: ignore[arg-type]
        dtype = self.tables.weight.dtype
        with torch.random.fork_rng():
            torch.manual_seed(towers_seed)
            self.towers = nn.Sequential(
                nn.Linear(4 * dim, 8, dtype=dtype), nn.Tanh(), nn.Linear(8, 2, dtype=dtype)
            )

    def forward(self, batch: Batch) -> Tensor:
        common, impression = self.tables(batch)
        inputs = torch.cat([common[batch.common_of_impression.long()], impression], 1)
        return self.towers(inputs)

    def loss(self, batch: Batch) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(self(batch), batch.labels)


def train(model: TableModel, *optimizers: Any, steps: range = range(5), **sizes: int) -> None:
    for step in steps:
        for optimizer in optimizers:
            optimizer.zero_grad()
        model.loss(make_batch(step, **sizes)).backward()
        for optimizer in optimizers:
            optimizer.step()
