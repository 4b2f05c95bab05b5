"""Batches (C++ threads) against the same assembly in vectorized NumPy and PyTorch.

python bench/batches.py
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import harness
import numpy as np
import pytest
import synth_log
import torch

from esmm_fast import reference
from esmm_fast.data.batches import Batches
from esmm_fast.schema import Field


class NumpyAssembly:
    """The same batches as one would write them with NumPy and PyTorch: no loop over bags."""

    def __init__(self, dataset: Any, batches: Batches) -> None:
        self.dataset, self.batches, self.schema = dataset, batches, batches.schema
        self.fields: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray | None]] = {}
        self.ids: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for field in self.schema.fields:
            table = dataset.common_rows if field.side == "common" else dataset.impressions
            ids, ends = self._flat(table[field.name])
            values = self._flat(table[f"{field.name}_value"])[0] if field.weighted else None
            self.fields[field.name] = (ids, np.concatenate([[0], ends]), values)

    @staticmethod
    def _flat(column: Any) -> tuple[np.ndarray, np.ndarray]:
        column = column.combine_chunks()
        if hasattr(column, "offsets"):
            return column.values.to_numpy(), column.offsets.to_numpy()[1:].astype(np.int64)
        valid = column.is_valid().to_numpy(zero_copy_only=False)
        return column.drop_null().to_numpy(), valid.cumsum()

    def use(self, vocabulary: Any) -> None:
        for table in vocabulary.tables:
            ids = vocabulary.feature_ids(table)[1:]
            order = np.argsort(ids)
            self.ids[table] = ids[order].astype(np.uint32), (order + 1).astype(np.int32)

    def run(self, order: np.ndarray, count: int) -> None:
        size = self.batches.batch_size
        for i in range(count):
            self.batch(order[i * size : (i + 1) * size])

    def batch(self, rows: np.ndarray) -> Any:
        common_row = self.dataset.impressions["common_row"].to_numpy()[rows]
        distinct, index = np.unique(common_row, return_inverse=True)
        sides = [
            self._side(self.schema.common, distinct.astype(np.int64)),
            self._side(self.schema.impression, rows),
        ]
        lengths = np.concatenate([s[0] for s in sides])
        joined = torch.from_numpy(np.concatenate([s[1] for s in sides]))
        weights = torch.from_numpy(np.concatenate([s[2] for s in sides]))
        offsets = torch.from_numpy(np.concatenate([[0], lengths.cumsum()]))
        return reference.batch_plan(joined, offsets, weights), torch.from_numpy(index)

    def _side(self, fields: tuple[Field, ...], units: np.ndarray) -> tuple[np.ndarray, ...]:
        begins = np.stack([self.fields[f.name][1][units] for f in fields], 1)
        ends = np.stack([self.fields[f.name][1][units + 1] for f in fields], 1)
        lengths = ends - begins
        places = (lengths.ravel().cumsum() - lengths.ravel()).reshape(lengths.shape)
        rows = np.empty(lengths.sum(), np.int32)
        weights = np.ones(len(rows), np.float32)
        for f, field in enumerate(fields):
            ids, _, values = self.fields[field.name]
            own = lengths[:, f]
            within = np.arange(own.sum()) - np.repeat(own.cumsum() - own, own)
            source = np.repeat(begins[:, f], own) + within
            to = np.repeat(places[:, f], own) + within
            known, row_of = self.ids[field.table_name]
            picked = ids[source]
            at = np.minimum(np.searchsorted(known, picked), len(known) - 1)
            found = np.where(known[at] == picked, row_of[at], 0)
            rows[to] = found + self.schema.row_bases[field.table_name]
            if values is not None:
                weights[to] = values[source]
        return lengths.ravel(), rows, weights


def comparison(name: str, threads: int, rounds: int) -> harness.Comparison:
    """Returns the times of the first 12 batches of 4,096 of an epoch."""
    dataset, vocabulary = synth_log.dataset(), synth_log.vocabulary()
    if name == "clicked only":
        dataset = dataset.select(np.flatnonzero(dataset.impressions["click"].to_numpy()))
    limit = 8 if name == "8 per group" else None
    batches = Batches(
        dataset, 4096, vocabulary=vocabulary, group_limit=limit, threads=threads, prefetch=4
    )
    peer = NumpyAssembly(dataset, batches)
    peer.use(vocabulary)
    order = batches._order()
    assert order is not None
    rows = order if dataset.selection is None else dataset.selection[order]
    count = min(len(batches), 12)

    def take() -> None:
        iterator = iter(batches)
        for _ in range(count):
            next(iterator)

    calls: dict[str, Callable[[], object]] = {
        "esmm_fast": take,
        "numpy + torch": lambda: peer.run(rows, count),
    }
    title = f"{count} batches, {name}, {next(iter(batches))!r}"
    return harness.compare(title, calls, rounds=rounds, threads=threads, warmup=1)


def run(options: argparse.Namespace) -> Sequence[harness.Comparison]:
    """Batches assembled by C++ threads against vectorised NumPy and PyTorch."""
    return [
        comparison(name, threads, options.rounds)
        for name in synth_log.GROUPS
        for threads in options.threads
    ]


@pytest.mark.parametrize("threads", [1, 2])
def test_batches(benchmark, threads):
    harness.record(benchmark, comparison("whole groups", threads, rounds=2), "esmm_fast")


if __name__ == "__main__":
    harness.main("batches", run)
