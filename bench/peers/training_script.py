"""ESMM on a dataset as a careful engineer writes it with PyTorch alone: every id and every value.

Batches are assembled in vectorized NumPy in a DataLoader's worker; all fields live in one
`nn.EmbeddingBag` with sparse gradients (faster than a table per field), updated by `SparseAdam`;
towers are `nn.Sequential` under Adam. Either each impression carries its user's fields (joined), or
common rows are pooled once and their vectors copied to the impressions (deduplicated).
"""

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional

from esmm_fast import Dataset, Field, Schema
from esmm_fast.data.narrow_columns import plain_array


class Column:
    """One field of a dataset in NumPy, with its ids as rows of the one table."""

    def __init__(self, table: pa.Table, field: Field, ids: np.ndarray, base: int) -> None:
        column = plain_array(table[field.name].combine_chunks())
        first = int(ids.min(initial=0)) if len(ids) else 0
        rows = np.full(int(ids.max(initial=0)) - first + 1, base, np.int64)  # base: unknown
        rows[ids - first] = base + 1 + np.arange(len(ids))
        if pa.types.is_list(column.type):
            found, ends = column.values.to_numpy(), column.offsets.to_numpy()[1:]
        else:
            found, ends = column.drop_null().to_numpy(), _valid(column).cumsum()
        known = (found >= first) & (found < first + len(rows))
        self.rows = np.where(known, rows[np.where(known, found - first, 0)], base)
        self.ends = np.concatenate([[0], ends.astype(np.int64)])
        self.values = None
        if f"{field.name}_value" in table.column_names:
            values = plain_array(table[f"{field.name}_value"].combine_chunks())
            self.values = (
                values.values if pa.types.is_list(values.type) else values.drop_null()
            ).to_numpy()


def _valid(column: pa.Array) -> np.ndarray:
    return column.is_valid().to_numpy(zero_copy_only=False)


class Batches(torch.utils.data.IterableDataset):
    """Batches in whole groups, in one random order of the groups, again and again."""

    def __init__(
        self, dataset: Dataset, schema: Schema, ids: dict[str, np.ndarray], size: int, joined: bool
    ) -> None:
        self.size, self.joined = size, joined
        self.sides = [
            [Column(table, f, ids[f.table_name], schema.row_bases[f.table_name]) for f in fields]
            for table, fields in (
                (dataset.common_rows, schema.common),
                (dataset.impressions, schema.impression),
            )
        ]
        self.common_row = dataset.impressions["common_row"].to_numpy().astype(np.int64)
        labels = [dataset.impressions[name].to_numpy() for name in schema.labels]
        self.labels = np.stack([labels[0], labels[0] * labels[1]], 1).astype(np.float32)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        rng = np.random.default_rng(0)
        starts = np.flatnonzero(np.diff(self.common_row, prepend=-1))
        lengths = np.diff(starts, append=len(self.common_row))
        while True:
            groups = rng.permutation(len(starts))
            begin = np.repeat(
                starts[groups] - np.cumsum(lengths[groups]) + lengths[groups], lengths[groups]
            )
            order = begin + np.arange(len(begin))
            for i in range(0, len(order) - self.size + 1, self.size):
                yield self.batch(order[i : i + self.size])

    def batch(self, impressions: np.ndarray) -> tuple[Any, ...]:
        common = self.common_row[impressions]
        which = None
        if not self.joined:
            common, inverse = np.unique(common, return_inverse=True)
            which = torch.from_numpy(inverse)
        sides = [bags(self.sides[0], common), bags(self.sides[1], impressions)]
        return (*sides, which, torch.from_numpy(self.labels[impressions]))


def bags(columns: list[Column], units: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (rows, offsets, weights) of all fields' bags of `units`, unit by unit."""
    begins = np.stack([c.ends[units] for c in columns], 1)
    lengths = np.stack([c.ends[units + 1] for c in columns], 1) - begins
    offsets = np.concatenate([[0], lengths.ravel().cumsum()])
    places = offsets[:-1].reshape(lengths.shape)
    rows = np.empty(offsets[-1], np.int64)
    weights = np.ones(offsets[-1], np.float32)
    for f, column in enumerate(columns):
        own = lengths[:, f]
        within = np.arange(own.sum()) - np.repeat(own.cumsum() - own, own)
        source, to = np.repeat(begins[:, f], own) + within, np.repeat(places[:, f], own) + within
        rows[to] = column.rows[source]
        if column.values is not None:
            weights[to] = column.values[source]
    return torch.from_numpy(rows), torch.from_numpy(offsets), torch.from_numpy(weights)


class Script:
    """The model, its optimizers and its loader; `train(k)` does the next k steps."""

    def __init__(
        self,
        dataset: Dataset,
        schema: Schema,
        ids: dict[str, np.ndarray],
        size: int,
        *,
        joined: bool,
        workers: int,
        bfloat16: bool,
        dim: int = 18,
        hidden: tuple[int, ...] = (360, 200, 80),
    ) -> None:
        self.dim, self.fields = dim, (len(schema.common), len(schema.impression))
        self.bfloat16 = bfloat16
        rows = sum(schema.table_rows.values())
        self.bag = nn.EmbeddingBag(rows, dim, mode="sum", sparse=True, include_last_offset=True)
        with torch.no_grad():
            self.bag.weight.mul_(0.01)
        self.towers = nn.ModuleList(tower(sum(self.fields) * dim, hidden) for _ in range(2))
        self.optimizers = [
            torch.optim.SparseAdam(self.bag.parameters(), lr=1e-3),
            torch.optim.Adam(self.towers.parameters(), lr=1e-3, fused=True),
        ]
        loader = torch.utils.data.DataLoader(
            Batches(dataset, schema, ids, size, joined), batch_size=None, num_workers=workers
        )
        self.batches = iter(loader)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            common, impression, which, labels = next(self.batches)
            users, items = (
                self.bag(rows, offsets, per_sample_weights=weights).reshape(-1, fields * self.dim)
                for (rows, offsets, weights), fields in zip(
                    (common, impression), self.fields, strict=True
                )
            )
            if which is not None:
                users = users.index_select(0, which)
            x = torch.cat([users, items], 1)
            with torch.autocast("cpu", torch.bfloat16) if self.bfloat16 else nullcontext():
                ctr, cvr = (tower(x).squeeze(1) for tower in self.towers)
            pctr, pcvr = ctr.float().sigmoid(), cvr.float().sigmoid()
            loss = functional.binary_cross_entropy(
                pctr, labels[:, 0]
            ) + functional.binary_cross_entropy(pctr * pcvr, labels[:, 1])
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()


def tower(inputs: int, hidden: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size, out in pairwise((inputs, *hidden)):
        layers += [nn.Linear(size, out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], 1))
