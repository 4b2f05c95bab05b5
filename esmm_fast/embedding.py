"""EmbeddingTables: every field's table in one row space, pooled for a whole batch at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import reference
from .batch import Batch
from .schema import Schema


class EmbeddingTables(nn.Module):
    """The tables of a schema in one parameter `weight` [R, D].

    Calling it with a batch returns the pooled fields of both sides: [U, Fc * D] and [B, Fs * D].
    """

    def __init__(
        self,
        schema: Schema,
        dim: int = 18,
        *,
        init_std: float = 0.01,
        seed: int = 0,
        feature_ids: dict[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.schema = schema
        self.dim = dim
        rows = sum(schema.table_rows.values())
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(rows, dim, generator=generator) * init_std)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        common_fields, impression_fields = len(self.schema.common), len(self.schema.impression)
        common, impression = reference.pooled_embedding(
            self.weight, batch.plan, batch.common * common_fields
        )
        return (
            common.reshape(batch.common, common_fields * self.dim),
            impression.reshape(batch.labels.shape[0], impression_fields * self.dim),
        )
