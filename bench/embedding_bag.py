"""The drop-in EmbeddingBag against nn.EmbeddingBag: forward and backward over a grid of shapes."""

import argparse
from collections.abc import Sequence
from itertools import product

import harness
import pytest
import torch
from torch import nn

from esmm_fast import EmbeddingBag

DIMS = (8, 18, 64)
BAGS = ((4096, 1), (4096, 20), (512, 600))  # bags, occurrences per bag on average
ROWS = (1_000, 300_000)


def comparison(
    rows: int, dim: int, shape: tuple[int, int], sparse: bool, threads: int, rounds: int
) -> harness.Comparison:
    generator = torch.Generator().manual_seed(0)
    bags, length = shape
    lengths = torch.poisson(torch.full((bags,), float(length)), generator=generator).long()
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    ids = (torch.rand(int(offsets[-1]), generator=generator) ** 3 * rows).long()  # popular first
    weights = torch.rand(len(ids), generator=generator)
    grad = torch.randn(bags, dim, generator=generator)
    start = torch.randn(rows, dim, generator=generator)

    def step(kind: type[nn.EmbeddingBag]):
        bag = kind(rows, dim, mode="sum", sparse=sparse, include_last_offset=True, _weight=start)
        return lambda: torch.autograd.grad(bag(ids, offsets, weights), bag.weight, grad)

    calls = {"nn.EmbeddingBag": step(nn.EmbeddingBag), "esmm_fast": step(EmbeddingBag)}
    kind = "sparse" if sparse else "dense"
    title = (
        f"EmbeddingBag, weighted sum, forward + {kind} gradient, R = {rows}, D = {dim}, "
        f"{bags} bags of {length}"
    )
    return harness.compare(title, calls, rounds=rounds, threads=threads)


def run(options: argparse.Namespace) -> Sequence[harness.Comparison]:
    """The drop-in EmbeddingBag against nn.EmbeddingBag."""
    return [
        comparison(rows, dim, shape, sparse, threads, options.rounds)
        for threads in options.threads
        for rows, dim, shape, sparse in product(ROWS, DIMS, BAGS, (True, False))
    ]


@pytest.mark.parametrize("sparse", [True, False])
def test_embedding_bag(benchmark, sparse):
    measured = comparison(300_000, 18, (512, 600), sparse, 2, 5)
    harness.record(benchmark, measured, "esmm_fast")


if __name__ == "__main__":
    harness.main("embedding_bag", run)
