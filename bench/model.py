"""ESMM's two towers, first layers split and merged, against two plain nn.Sequential towers."""

import argparse
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise

import harness
import pytest
import torch
from torch import nn

from esmm_fast.model import Tower
from esmm_fast.tower import plain_tower_logits, tower_logits

IMPRESSIONS = 4096
GROUPS = {"whole groups": 71, "8 per group": 512, "2 per group": 2048}  # common rows of the batch
IN_COMMON, IN_IMPRESSION, HIDDEN = 13 * 18, 10 * 18, (360, 200, 80)


def plain_tower() -> nn.Sequential:
    sizes = (IN_COMMON + IN_IMPRESSION, *HIDDEN)
    layers: list[nn.Module] = []
    for size, out in pairwise(sizes):
        layers += [nn.Linear(size, out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(HIDDEN[-1], 1))


def comparison(
    groups: str, threads: int, bfloat16: bool = False, rounds: int = 11
) -> harness.Comparison:
    torch.manual_seed(0)
    common_rows = GROUPS[groups]
    common = torch.randn(common_rows, IN_COMMON, requires_grad=True)
    impression = torch.randn(IMPRESSIONS, IN_IMPRESSION, requires_grad=True)
    which = torch.randint(common_rows, (IMPRESSIONS,)).sort()[0].int()
    ready = torch.cat([common.detach()[which], impression.detach()], 1).requires_grad_()
    towers = [Tower(IN_COMMON, IN_IMPRESSION, HIDDEN) for _ in range(2)]
    plain = [plain_tower() for _ in range(2)]
    outer = torch.randn(IMPRESSIONS, 2)

    def step(forward: Callable[[], torch.Tensor], *inputs: torch.Tensor) -> Callable[[], object]:
        parameters = [p for tower in (*towers, *plain) for p in tower.parameters()]

        def call() -> object:
            with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
                logits = forward()
            outer_like = outer.to(logits.dtype)
            return torch.autograd.grad(
                logits, [*inputs, *parameters], outer_like, allow_unused=True
            )

        return call

    def plain_forward(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([tower(x) for tower in plain], 1)

    def concat_forward() -> torch.Tensor:
        return plain_forward(torch.cat([common.index_select(0, which), impression], 1))

    def split_forward() -> torch.Tensor:
        return plain_tower_logits(towers, common, impression, which)

    calls = {
        "plain towers, ready input": step(lambda: plain_forward(ready), ready),
        "plain towers, index_select + cat": step(concat_forward, common, impression),
        "split and merged, torch's layers": step(split_forward, common, impression),
        "esmm_fast": step(
            lambda: tower_logits(towers, common, impression, which), common, impression
        ),
    }
    dtype = "bfloat16 autocast" if bfloat16 else "float32"
    sizes = f"B = {IMPRESSIONS}, U = {common_rows} ({groups})"
    title = f"two towers, forward and backward, {sizes}, {dtype}"
    return harness.compare(title, calls, rounds=rounds, threads=threads)


def run(options: argparse.Namespace) -> Sequence[harness.Comparison]:
    """Forward and backward of ESMM's two towers, 414-360-200-80-1 each, against plain PyTorch."""
    return [
        comparison(groups, threads, bfloat16, options.rounds)
        for groups in GROUPS
        for bfloat16 in (False, True)
        for threads in options.threads
    ]


@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("groups", GROUPS)
def test_towers(benchmark, groups, bfloat16):
    measured = comparison(groups, threads=2, bfloat16=bfloat16, rounds=7)
    harness.record(benchmark, measured, "esmm_fast")


if __name__ == "__main__":
    harness.main("model", run)
