"""A whole embedding step (forward, backward, LazyAdam) against nn.EmbeddingBag and SparseAdam."""

import argparse
from collections.abc import Sequence
from itertools import cycle

import harness
import log_batch
import pytest
import torch
from torch import nn

from esmm_fast import EmbeddingTables
from esmm_fast.optim import LazyAdam, RowwiseAdagrad

DIM = 18
SCALE = 0.1  # of the published table sizes
ROTATION = 4  # batches in turn, so that none stays in the cache by accident
GROUPS = {"whole groups": log_batch.IMPRESSIONS_PER_COMMON_ROW, "8 per group": 8, "2 per group": 2}


def fused(schema, inputs, grads, optimizer_type):
    tables = EmbeddingTables(schema, DIM)
    optimizer = optimizer_type(tables)
    turn = cycle(range(ROTATION))

    def call():
        i = next(turn)
        torch.autograd.backward(tables(inputs[i].batch), grads[i])
        optimizer.step()

    return call


def one_big_bag(schema, inputs, grads):
    """Everything in one nn.EmbeddingBag, bags of common rows pooled once."""
    rows = sum(schema.table_rows.values())
    bag = nn.EmbeddingBag(rows, DIM, mode="sum", sparse=True, include_last_offset=True)
    optimizer = torch.optim.SparseAdam(bag.parameters())
    turn = cycle(range(ROTATION))

    def call():
        i = next(turn)
        out = bag(inputs[i].rows, inputs[i].offsets, per_sample_weights=inputs[i].weights)
        out.backward(torch.cat([grad.reshape(-1, DIM) for grad in grads[i]]))
        optimizer.step()
        optimizer.zero_grad()

    return call


def bag_per_field(schema, inputs, grads):
    """One nn.EmbeddingBag per field; pooled fields are concatenated per side."""
    fields = (*schema.common, *schema.impression)
    bags = [
        nn.EmbeddingBag(f.rows, DIM, mode="sum", sparse=True, include_last_offset=True)
        for f in fields
    ]
    optimizer = torch.optim.SparseAdam([bag.weight for bag in bags])
    cut = [_by_field(schema, each) for each in inputs]
    turn = cycle(range(ROTATION))

    def call():
        i = next(turn)
        pooled = [
            bag(rows, offsets, per_sample_weights=weights)
            for bag, (rows, offsets, weights) in zip(bags, cut[i], strict=True)
        ]
        split = len(schema.common)
        sides = torch.cat(pooled[:split], 1), torch.cat(pooled[split:], 1)
        torch.autograd.backward(sides, grads[i])
        optimizer.step()
        optimizer.zero_grad()

    return call


def _by_field(schema, inputs):
    """Returns (rows, offsets, weights) of each field, rows counted from its table's first."""
    parts, first_bag = [], 0
    for fields, count in (
        (schema.common, inputs.batch.common),
        (schema.impression, len(inputs.batch.labels)),
    ):
        for place, field in enumerate(fields):
            bags = first_bag + torch.arange(count) * len(fields) + place
            begin, lengths = inputs.offsets[bags], inputs.offsets.diff()[bags]
            offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
            within = torch.arange(int(offsets[-1])) - offsets[:-1].repeat_interleave(lengths)
            at = begin.repeat_interleave(lengths) + within
            base = schema.row_bases[field.table_name]
            parts.append((inputs.rows[at] - base, offsets, inputs.weights[at]))
        first_bag += count * len(fields)
    return parts


def comparison(
    impressions: int, threads: int, groups: str = "whole groups", rounds: int = 15
) -> harness.Comparison:
    schema = log_batch.schema(SCALE)
    inputs = [log_batch.make(schema, impressions, seed, GROUPS[groups]) for seed in range(ROTATION)]
    grads = [
        (
            torch.randn(each.batch.common, len(schema.common) * DIM).mul_(1e-3),
            torch.randn(impressions, len(schema.impression) * DIM).mul_(1e-3),
        )
        for each in inputs
    ]
    calls = {
        "nn.EmbeddingBag + SparseAdam, deduplicated, a table per field": bag_per_field(
            schema, inputs, grads
        ),
        "nn.EmbeddingBag + SparseAdam, deduplicated, one table": one_big_bag(schema, inputs, grads),
        "esmm_fast LazyAdam": fused(schema, inputs, grads, LazyAdam),
        "esmm_fast RowwiseAdagrad": fused(schema, inputs, grads, RowwiseAdagrad),
    }
    rows = sum(schema.table_rows.values())
    title = (
        f"embedding forward + backward + update, {groups}, {inputs[0]}, D = {DIM}, {rows} rows, "
        "plan made ahead"
    )
    return harness.compare(title, calls, rounds=rounds, threads=threads)


def run(options: argparse.Namespace) -> Sequence[harness.Comparison]:
    """The embedding step against nn.EmbeddingBag and SparseAdam on deduplicated batches."""
    return [
        comparison(options.impressions, threads, groups, options.rounds)
        for groups in options.groups
        for threads in options.threads
    ]


@pytest.mark.parametrize("threads", [1, 2])
def test_embedding_update(benchmark, threads):
    harness.record(benchmark, comparison(4096, threads, rounds=7), "esmm_fast LazyAdam")


if __name__ == "__main__":
    harness.main(
        "embedding_update",
        run,
        impressions={"type": int, "default": 4096, "help": "impressions of a batch"},
        groups={"nargs": "+", "choices": list(GROUPS), "default": ["whole groups"]},
    )
