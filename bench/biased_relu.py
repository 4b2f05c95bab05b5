"""biased_relu and its gradient against torch's passes for the same: add, relu, mask and sums.

Both work in place, again and again on the same values: what they hold does not change the time.
"""

import argparse
from collections.abc import Sequence

import harness
import pytest
import torch

from esmm_fast import ops

IMPRESSIONS, COMMON_ROWS, COLUMNS = 4096, 71, 720  # both towers' first layers, whole groups
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def comparison(dtype: str, threads: int, rounds: int = 15) -> harness.Comparison:
    generator = torch.Generator().manual_seed(0)
    shape = IMPRESSIONS, COLUMNS
    x, grad = (torch.randn(shape, generator=generator).to(DTYPES[dtype]) for _ in range(2))
    once = torch.randn(COMMON_ROWS, COLUMNS, generator=generator)
    which = torch.randint(COMMON_ROWS, (IMPRESSIONS,), generator=generator).sort().values.int()

    def by_torch() -> object:
        out = x.add_(once.to(x.dtype).index_select(0, which)).relu_()
        masked = torch.ops.aten.threshold_backward(grad, out, 0)
        return masked, torch.zeros_like(once).index_add_(0, which, masked.float())

    def ours() -> object:
        out = ops.biased_relu_(x, once, which)
        return ops.biased_relu_gradient_(grad, out, which, COMMON_ROWS)

    title = f"biased_relu and its gradient, B = {IMPRESSIONS}, H = {COLUMNS}, {dtype}"
    return harness.compare(
        title, {"torch": by_torch, "esmm_fast": ours}, rounds=rounds, threads=threads
    )


def run(options: argparse.Namespace) -> Sequence[harness.Comparison]:
    """What stands between two products of a tower, forward and backward, against torch."""
    return [comparison(d, threads, options.rounds) for d in DTYPES for threads in options.threads]


@pytest.mark.parametrize("dtype", DTYPES)
def test_biased_relu(benchmark, dtype):
    harness.record(benchmark, comparison(dtype, threads=2, rounds=7), "esmm_fast")


if __name__ == "__main__":
    harness.main("biased_relu", run)
