"""schedule: the learning rate of every step, with torch's and this package's optimizers."""

import math

import pytest
import torch

from esmm_fast import ESMM
from esmm_fast.schedule import default_optimizers, schedulers


def rates(kind: str, steps: int, **options: float) -> list[list[float]]:
    """The learning rates of every step, of LazyAdam and of Adam."""
    optimizers = default_optimizers(ESMM({"item": 4}, dim=2, hidden=(2,)), lr=0.5)
    assert [type(o).__name__ for o in optimizers] == ["LazyAdam", "Adam"]
    found = schedulers(optimizers, kind, **options)  # type: ignore[arg-type]
    seen = []
    for _ in range(steps):
        seen.append([o.param_groups[0]["lr"] for o in optimizers])
        for optimizer in optimizers:
            optimizer.step()
        for scheduler in found:
            scheduler.step()
    return seen


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", [0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]),
        ("linear", [0.25, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1]),
        (
            "cosine",
            [0.25, 0.5, 0.5, *(0.3 + 0.2 * math.cos(math.pi * i / 4) for i in (1, 2, 3, 4))],
        ),
    ],
)
def test_the_rate_of_every_step(kind: str, expected: list[float]) -> None:
    found = rates(kind, 7, warmup=2, total=6, final=0.2)
    assert found == [pytest.approx([rate, rate], rel=1e-12) for rate in expected]


def test_constant_without_warm_up_needs_no_scheduler() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1)
    assert schedulers([optimizer], total=10) == []


def test_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="kind: expected 'constant', 'linear' or 'c"):
        schedulers([], "step", total=3)
    with pytest.raises(ValueError, match="warmup: expected at most the total of 3 steps, got 4"):
        schedulers([], warmup=4, total=3)
