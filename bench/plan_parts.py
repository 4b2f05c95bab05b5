"""Splitting a plan by dimension against its torch reference, and what several dimensions cost.

python bench/plan_parts.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle

import harness
import pytest
import synth_log
import torch
from embedding_update import rotated
from synth_log import Inputs

from esmm_fast import ESMM, EmbeddingTables, Schema, ops, reference
from esmm_fast.optim import LazyAdam
from esmm_fast.schedule import default_optimizers

DIMS = {  # of the fields in turn; rows and pooled columns have about the bytes of D = 18
    "one dimension, 18": (18,),
    "esmm_fast, two dimensions, 14 and 22": (14, 22),
    "esmm_fast, six dimensions, 12 to 24": (12, 24, 14, 22, 16, 20),
}
TWO = (14, 22)


def with_dims(schema: Schema, dims: tuple[int, ...]) -> Schema:
    turn = cycle(dims)
    return replace(schema, fields=tuple(replace(f, dim=next(turn)) for f in schema.fields))


def split(
    inputs: list[Inputs], dims: tuple[int, ...], threads: int, rounds: int
) -> harness.Comparison:
    """Returns the times of splitting the plans of some batches."""
    schema = with_dims(inputs[0].schema, dims)
    tables = EmbeddingTables(schema, init_std=0)
    columns = tables._columns
    fields = columns.common, columns.impression, columns.parts
    batches = [(each.batch.plan, each.batch.common * len(schema.common)) for each in inputs]
    calls = {
        "torch": lambda: [reference.plan_parts(p, bags, *fields) for p, bags in batches],
        "esmm_fast": lambda: [ops.plan_parts(p, bags, *fields) for p, bags in batches],
    }
    title = f"{len(dims)} parts of {len(batches)} plans, {inputs[0]}"
    return harness.compare(title, calls, rounds=rounds, threads=threads)


def step(
    groups: str, threads: int, rounds: int, batch_size: int = 4096, **log: int
) -> harness.Comparison:
    """Returns the times of an embedding step, plan made ahead, with LazyAdam."""
    inputs = synth_log.inputs(batch_size, groups, whole=False, **log)  # type: ignore[arg-type]
    calls = {}
    for name, dims in DIMS.items():
        tables = EmbeddingTables(with_dims(inputs[0].schema, dims))
        optimizer = LazyAdam(tables)
        grads = [
            [torch.randn_like(side).mul_(1e-3) for side in tables(each.batch)] for each in inputs
        ]

        def run(i: int, tables=tables, optimizer=optimizer, grads=grads) -> None:
            torch.autograd.backward(tables(inputs[i].batch), grads[i])
            optimizer.step()

        calls[name] = rotated(run, len(inputs))
    title = f"embedding step with LazyAdam, plan made ahead, {groups}, {inputs[0]}"
    return harness.compare(
        title, calls, rounds=rounds, threads=threads, warmup=1, sample_seconds=0.05
    )


def training_step(threads: int, rounds: int, batch_size: int = 4096) -> harness.Comparison:
    """Returns the times of a whole step of ESMM, plan made ahead."""
    inputs = synth_log.inputs(batch_size, whole=False)
    calls = {}
    for name, dims in DIMS.items():
        model = ESMM(with_dims(inputs[0].schema, dims))
        optimizers = default_optimizers(model)

        def run(i: int, model=model, optimizers=optimizers) -> None:
            batch = inputs[i].batch
            model.loss(model(batch), batch).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

        calls[name] = rotated(run, len(inputs))
    title = f"training step of ESMM, plan made ahead, whole groups, {inputs[0]}"
    return harness.compare(
        title, calls, rounds=rounds, threads=threads, warmup=1, sample_seconds=0.1
    )


def run(options: argparse.Namespace) -> Sequence[harness.Comparison]:
    """Times splitting and whole steps."""
    found = []
    for groups in ("whole groups", "clicked only"):
        inputs = synth_log.inputs(4096, groups, whole=False, rotation=4)
        for threads in options.threads:
            found.append(split(inputs, TWO, threads, options.rounds))
            found.append(step(groups, threads, options.rounds))
    found += [training_step(threads, options.rounds) for threads in options.threads]
    return found


@pytest.mark.parametrize("threads", [1, 2])
def test_plan_parts(benchmark, threads):
    inputs = synth_log.inputs(1024, impressions=synth_log.SMALL, whole=False, rotation=2)
    measured = split(inputs, TWO, threads, 5)
    harness.record(benchmark, measured, "esmm_fast")


if __name__ == "__main__":
    harness.main("plan_parts", run)
