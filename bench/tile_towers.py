"""Towers in bfloat16 on matrix tiles against torch's products with `biased_relu` between."""

import argparse
from collections.abc import Callable, Sequence

import harness
import pytest
import torch
from model import GROUPS, HIDDEN, IMPRESSIONS, IN_COMMON, IN_IMPRESSION

from esmm_fast import ops, tower_pass
from esmm_fast.model import Tower


def comparison(groups: str, threads: int, rounds: int = 15) -> harness.Comparison:
    torch.manual_seed(0)
    common_rows = GROUPS[groups]
    common = torch.randn(common_rows, IN_COMMON, requires_grad=True)
    impression = torch.randn(IMPRESSIONS, IN_IMPRESSION, requires_grad=True)
    which = torch.randint(common_rows, (IMPRESSIONS,)).sort()[0].int()
    towers = [Tower(IN_COMMON, IN_IMPRESSION, HIDDEN) for _ in range(2)]
    parameters = [p for tower in towers for p in tower.parameters()]
    counts = [len(HIDDEN) + 1] * 2
    outer = torch.randn(IMPRESSIONS, 2)

    def both_ways(forward: Callable[[], torch.Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(forward(), [common, impression, *parameters], outer)

    calls = {
        "torch's products": both_ways(
            lambda: tower_pass._Pass.apply(
                common, impression, which, torch.bfloat16, counts, *parameters
            )
        ),
        "esmm_fast": both_ways(
            lambda: tower_pass._TilePass.apply(common, impression, which, counts, *parameters)
        ),
    }
    sizes = f"B = {IMPRESSIONS}, U = {common_rows} ({groups})"
    title = f"two towers in bfloat16, forward and backward, {sizes}"
    return harness.compare(title, calls, rounds=rounds, threads=threads)


def run(options: argparse.Namespace) -> Sequence[harness.Comparison]:
    """ESMM's two towers in bfloat16, on matrix tiles and by torch's products."""
    return [comparison(g, threads, options.rounds) for g in GROUPS for threads in options.threads]


@pytest.mark.skipif(not ops.has_tiles(), reason="this processor has no matrix tiles (AMX)")
@pytest.mark.parametrize("groups", GROUPS)
def test_tile_towers(benchmark, groups):
    harness.record(benchmark, comparison(groups, threads=2, rounds=7), "esmm_fast")


if __name__ == "__main__":
    harness.main("tile_towers", run)
