"""product_loss against PyTorch: value and gradient for K = 2 stages at several batch sizes."""

import argparse
from collections.abc import Sequence

import harness
import pytest
import torch
from torch.nn.functional import binary_cross_entropy

from esmm_fast import ops, reference

IMPRESSIONS = (1024, 8192, 65536)


def clamped(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss as it is usually written: two BCEs of probabilities, with log clamped at -100."""
    pctr, pcvr = logits.sigmoid().unbind(1)
    click, conversion = labels.unbind(1)
    return binary_cross_entropy(pctr, click) + binary_cross_entropy(pctr * pcvr, conversion)


def batch(impressions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits around the Ali-CCP log's rates (4 % clicks, 0.5 % of them conversions), and labels."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(impressions, 2, generator=generator) + torch.tensor([-3.2, -5.2])
    passed = torch.rand(impressions, 2, generator=generator) < logits.sigmoid()
    return logits.requires_grad_(), passed.cumprod(1).float()


class _Empty(torch.autograd.Function):
    """The least that a loss with a gradient of its own can cost in Python."""

    @staticmethod
    def forward(ctx, logits, labels):
        ctx.save_for_backward(labels)
        return logits.new_zeros(())

    @staticmethod
    def backward(ctx, grad):
        return ctx.saved_tensors[0], None


def comparison(
    impressions: int, threads: int, rounds: int = 15, compiled: bool = False
) -> harness.Comparison:
    logits, labels = batch(impressions)
    detached = logits.detach()

    def step(loss):
        return lambda: torch.autograd.grad(loss(logits, labels), logits)

    calls = {
        "eager, clamped": step(clamped),
        "eager, reference": step(reference.product_loss),
        "esmm_fast": step(ops.product_loss),
        "esmm_fast, kernel alone": lambda: torch.ops.esmm_fast.product_loss.default(
            detached, labels, None, 1
        ),
        "empty autograd Function": step(_Empty.apply),
    }
    if compiled:
        calls["torch.compile, clamped"] = step(torch.compile(clamped))
    title = f"product loss, value and gradient, B = {impressions}, K = 2, float32"
    return harness.compare(title, calls, rounds=rounds, threads=threads)


def run(options: argparse.Namespace) -> Sequence[harness.Comparison]:
    """Value and gradient of the product loss against PyTorch."""
    return [
        comparison(impressions, threads, options.rounds, options.compile)
        for impressions in IMPRESSIONS
        for threads in options.threads
    ]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("impressions", IMPRESSIONS)
def test_product_loss(benchmark, impressions, threads):
    harness.record(benchmark, comparison(impressions, threads, rounds=9), "esmm_fast")


if __name__ == "__main__":
    compile_option = {"action": "store_true", "help": "time torch.compile of the eager loss too"}
    harness.main("product_loss", run, compile=compile_option)
