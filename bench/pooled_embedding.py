"""pooled_embedding against nn.EmbeddingBag on the same deduplicated bags: forward, gradient."""

import argparse
from collections.abc import Sequence
from itertools import cycle

import harness
import pytest
import synth_log
import torch
from synth_log import DIM

from esmm_fast import ops


def comparison(
    batch_size: int, threads: int, rounds: int = 15, gradient: bool = False, **log: int
) -> harness.Comparison:
    inputs = synth_log.inputs(batch_size, **log)  # type: ignore[arg-type]
    schema = inputs[0].schema
    weight = torch.randn(sum(schema.table_rows.values()), DIM).mul_(0.01)
    weight.requires_grad_(gradient)
    common_fields = len(schema.common)
    grads = [torch.randn(len(each.offsets) - 1, DIM) for each in inputs]

    def ours():
        turn = cycle(range(len(inputs)))

        def call():
            i = next(turn)
            split = inputs[i].batch.common * common_fields
            out = ops.pooled_embedding(weight, inputs[i].batch.plan, split, sparse=True)
            if gradient:
                return torch.autograd.grad(out, weight, (grads[i][:split], grads[i][split:]))
            return out

        return call

    def bag():
        turn = cycle(range(len(inputs)))

        def call():
            i = next(turn)
            out = torch.nn.functional.embedding_bag(
                inputs[i].rows,
                weight,
                inputs[i].offsets,
                mode="sum",
                sparse=True,
                per_sample_weights=inputs[i].weights,
                include_last_offset=True,
            )
            return torch.autograd.grad(out, weight, grads[i]) if gradient else out

        return call

    work = "forward and sparse gradient" if gradient else "forward"
    title = f"pooling, {work}, {inputs[0]}, D = {DIM}, {len(weight)} rows, plan made ahead"
    calls = {"nn.EmbeddingBag, deduplicated, one table": bag(), "esmm_fast": ours()}
    return harness.compare(title, calls, rounds=rounds, threads=threads)


def run(options: argparse.Namespace) -> Sequence[harness.Comparison]:
    """Pooling of deduplicated batches against nn.EmbeddingBag."""
    return [
        comparison(options.impressions, threads, options.rounds, gradient)
        for gradient in (False, True)
        for threads in options.threads
    ]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("gradient", [False, True])
def test_pooled_embedding(benchmark, gradient, threads):
    measured = comparison(1024, threads, 5, gradient, impressions=synth_log.SMALL, whole=False)
    harness.record(benchmark, measured, "esmm_fast")


if __name__ == "__main__":
    impressions = {"type": int, "default": 4096, "help": "impressions of a batch"}
    harness.main("pooled_embedding", run, impressions=impressions)
