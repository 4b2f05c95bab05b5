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
from peers.training_script import Column, bags

from esmm_fast import reference
from esmm_fast.data.batches import Batches


class NumpyAssembly:
    """The same batches as one would write them with NumPy and PyTorch: no loop over bags.

    Its ids are table rows already, while ours are looked up batch by batch.
    """

    def __init__(self, dataset: Any, batches: Batches, vocabulary: Any) -> None:
        schema = batches.schema
        self.size = batches.batch_size
        self.common_row = dataset.impressions["common_row"].to_numpy().astype(np.int64)
        ids = {t: vocabulary.feature_ids(t)[1:].astype(np.int64) for t in vocabulary.tables}
        self.sides = [
            [Column(table, f, ids[f.table_name], schema.row_bases[f.table_name]) for f in fields]
            for table, fields in (
                (dataset.common_rows, schema.common),
                (dataset.impressions, schema.impression),
            )
        ]

    def run(self, order: np.ndarray, count: int) -> None:
        for i in range(count):
            self.batch(order[i * self.size : (i + 1) * self.size])

    def batch(self, impressions: np.ndarray) -> Any:
        distinct, index = np.unique(self.common_row[impressions], return_inverse=True)
        common, impression = bags(self.sides[0], distinct), bags(self.sides[1], impressions)
        rows = torch.cat([common[0], impression[0]])
        offsets = torch.cat([common[1], impression[1][1:] + common[1][-1]])
        weights = torch.cat([common[2], impression[2]])
        return reference.batch_plan(rows, offsets, weights), torch.from_numpy(index)


def comparison(name: str, threads: int, rounds: int) -> harness.Comparison:
    """Returns the times of the first 12 batches of 4,096 of an epoch."""
    dataset, vocabulary = synth_log.dataset(), synth_log.vocabulary()
    if name == "clicked only":
        dataset = dataset.select(np.flatnonzero(dataset.impressions["click"].to_numpy()))
    limit = 8 if name == "8 per group" else None
    batches = Batches(
        dataset, 4096, vocabulary=vocabulary, group_limit=limit, threads=threads, prefetch=4
    )
    peer = NumpyAssembly(dataset, batches, vocabulary)
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
