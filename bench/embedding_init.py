"""embedding_init against torch's normal generator, which depends on the order of rows."""

import argparse
from collections.abc import Sequence

import harness
import pytest
import torch

from esmm_fast import ops

ROWS, DIM = 200_000, 18


def comparison(threads: int, rounds: int = 15) -> harness.Comparison:
    weight, ids = torch.empty(ROWS, DIM), torch.arange(ROWS)
    calls = {
        "torch normal_": lambda: weight.normal_(0, 0.01),
        "esmm_fast": lambda: ops.embedding_init(weight, ids, key=1, std=0.01),
    }
    title = f"initial rows, R = {ROWS}, D = {DIM}, float32"
    return harness.compare(title, calls, rounds=rounds, threads=threads)


def run(options: argparse.Namespace) -> Sequence[harness.Comparison]:
    """Initial table rows against torch's normal generator."""
    return [comparison(threads, options.rounds) for threads in options.threads]


@pytest.mark.parametrize("threads", [1, 2])
def test_embedding_init(benchmark, threads):
    harness.record(benchmark, comparison(threads, 7), "esmm_fast")


if __name__ == "__main__":
    harness.main("embedding_init", run)
