"""A whole embedding step (plan, forward, backward, update) against nn.EmbeddingBag and FBGEMM."""

import argparse
from collections.abc import Callable, Sequence
from functools import cache
from itertools import cycle
from typing import Any

import embedding_peers as peers
import harness
import pytest
import synth_log
import torch
from embedding_peers import Step
from synth_log import DIM, Inputs

from esmm_fast import Batch, EmbeddingTables, ops
from esmm_fast.optim import LazyAdam, RowwiseAdagrad

# A training loop repeats one kind of step: two untimed ones come before each sample, so that nobody
# pays for what another candidate left in the caches and in the allocator.
SAMPLES: dict[str, Any] = {"warmup": 1, "sample_seconds": 0.05, "lead": 2}
WORK = ("LazyAdam", "RowwiseAdagrad")
OURS = "esmm_fast, plan included"
AHEAD = "esmm_fast, plan made ahead"
CONCATENATED = "esmm_fast, plan included, then index_select + cat"
ONE_TABLE = "nn.EmbeddingBag + SparseAdam, one table, deduplicated"
PER_FIELD = "nn.EmbeddingBag + SparseAdam, table per field, deduplicated"
JOINED = "nn.EmbeddingBag + SparseAdam, one table, joined rows"
FBGEMM = "FBGEMM rowwise Adagrad, D = 20, deduplicated"


class Fused:
    """esmm_fast's tables with a fused optimizer, and its steps."""

    def __init__(self, schema: Any, optimizer_type: type) -> None:
        self.rows = sum(schema.table_rows.values())
        self.tables = EmbeddingTables(schema, DIM)
        self.optimizer = optimizer_type(self.tables)

    def step(self, inputs: Sequence[Inputs], *, ahead: bool, concatenated: bool = False) -> Step:
        grads = [peers.side_gradients(each) for each in inputs]
        joint = [peers.joined_gradient(each) for each in inputs] if concatenated else []

        def step(i: int) -> None:
            batch = inputs[i].batch
            if not ahead:
                plan = ops.batch_plan(
                    batch.plan.rows, batch.plan.offsets, batch.plan.weights, self.rows
                )
                batch = Batch(plan, batch.common, batch.common_of_impression, batch.labels)
            pooled = self.tables(batch)
            if concatenated:
                which = batch.common_of_impression
                torch.cat([pooled[0].index_select(0, which), pooled[1]], 1).backward(joint[i])
            else:
                torch.autograd.backward(pooled, grads[i])
            self.optimizer.step()

        return step

    def bags(self, lists: Sequence[tuple[Any, Any, Any]]) -> Step:
        """Joined rows, as bags without groups."""
        plain = [(rows.int(), offsets.int(), weights) for rows, offsets, weights in lists]
        grads = [torch.randn(len(offsets) - 1, DIM).mul_(1e-3) for _, offsets, _ in lists]

        def step(i: int) -> None:
            plan = ops.batch_plan(*plain[i], self.rows)
            _, out = ops.pooled_embedding(self.tables.weight, plan, 0, queue=self.tables.queue)
            out.backward(grads[i])
            self.optimizer.step()

        return step


@cache
def contestants(kind: str, impressions: int, whole: bool) -> Any:
    """Returns tables of one kind; they are made once, for they are large."""
    schema = synth_log.inputs(64, impressions=impressions, whole=whole, rotation=1)[0].schema
    rows = [field.rows for field in (*schema.common, *schema.impression)]
    split = len(schema.common)
    if kind == "LazyAdam":
        return Fused(schema, LazyAdam)
    if kind == "RowwiseAdagrad":
        return Fused(schema, RowwiseAdagrad)
    if kind == "one table":
        return peers.OneTable(sum(rows))
    if kind == "per field":
        return peers.TablePerField(rows)
    return peers.Fbgemm(rows[:split], rows[split:])


def rotated(step: Step, count: int) -> Callable[[], object]:
    """Returns a call that takes the batches in turn."""
    turn = cycle(range(count))
    return lambda: step(next(turn))


def comparison(
    batch_size: int,
    threads: int,
    groups: str = "whole groups",
    work: str = "LazyAdam",
    *,
    impressions: int = synth_log.FULL,
    whole: bool = True,
    joined: bool = False,
    rounds: int = 9,
) -> harness.Comparison:
    """Returns the times of deduplicated batches; the clock starts at table rows and offsets.

    Args:
        batch_size, threads, groups: Of the batches.
        work: Which optimizer: of `LazyAdam` SparseAdam is the peer, of `RowwiseAdagrad` FBGEMM.
        impressions, whole: See synth_log.inputs.
        joined: Time nn.EmbeddingBag on joined rows too (a second or more per step).
        rounds: See harness.compare.
    """
    inputs = synth_log.inputs(batch_size, groups, impressions=impressions, whole=whole)
    rotation = len(inputs)
    fused = contestants(work, impressions, whole)
    steps: dict[str, Step] = {
        OURS: fused.step(inputs, ahead=False),
        AHEAD: fused.step(inputs, ahead=True),
    }
    if work == "LazyAdam":
        one = contestants("one table", impressions, whole)
        steps[CONCATENATED] = fused.step(inputs, ahead=False, concatenated=True)
        steps[ONE_TABLE] = one.deduplicated(inputs)
        steps[PER_FIELD] = contestants("per field", impressions, whole).deduplicated(inputs)
        if joined:
            steps[JOINED] = one.bags([inputs[0].joined()] * rotation)
    elif peers.fbgemm_reason() is None:
        fbgemm = contestants("fbgemm", impressions, whole)
        steps[FBGEMM] = fbgemm.deduplicated(inputs)
        steps[f"{FBGEMM}, unweighted"] = fbgemm.deduplicated(inputs, weighted=False)
    calls = {name: rotated(step, rotation) for name, step in steps.items()}
    title = f"embedding step with {work}, {groups}, {inputs[0]}, D = {DIM}, {fused.rows} rows"
    return harness.compare(title, calls, rounds=rounds, threads=threads, **SAMPLES)


def raw_bags(
    batch_size: int,
    threads: int,
    *,
    weighted: bool,
    impressions: int = synth_log.FULL,
    whole: bool = True,
    rounds: int = 9,
) -> harness.Comparison:
    """Returns the times of joined rows: every impression with its own copy of the common bags."""
    inputs = synth_log.inputs(batch_size, impressions=impressions, whole=whole)
    lists = [each.joined() for each in inputs]
    if not weighted:
        lists = [(rows, offsets, None) for rows, offsets, _ in lists]  # type: ignore[misc]
    fused = contestants("RowwiseAdagrad", impressions, whole)
    steps = {OURS: fused.bags(lists)}
    if peers.fbgemm_reason() is None:
        steps[FBGEMM] = contestants("fbgemm", impressions, whole).joined(inputs, weighted)
    rotation = len(lists)
    calls = {name: rotated(step, rotation) for name, step in steps.items()}
    kind = "weighted" if weighted else "unweighted"
    title = (
        f"embedding step with RowwiseAdagrad, joined rows, {kind}, B = {batch_size}, "
        f"N = {len(lists[0][0])}, D = {DIM}, {fused.rows} rows"
    )
    return harness.compare(title, calls, rounds=rounds, threads=threads, **SAMPLES)


def run(options: argparse.Namespace) -> Sequence[harness.Comparison]:
    """The embedding step against nn.EmbeddingBag and SparseAdam, and against FBGEMM."""
    return [
        comparison(options.impressions, threads, groups, work, rounds=options.rounds)
        for work in options.work
        for groups in options.groups
        for threads in options.threads
    ]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("work", WORK)
def test_embedding_update(benchmark, work, threads):
    measured = comparison(
        1024, threads, work=work, impressions=synth_log.SMALL, whole=False, rounds=5
    )
    harness.record(benchmark, measured, OURS)


if __name__ == "__main__":
    harness.main(
        "embedding_update",
        run,
        impressions={"type": int, "default": 4096, "help": "impressions of a batch"},
        groups={"nargs": "+", "choices": synth_log.GROUPS, "default": ["whole groups"]},
        work={"nargs": "+", "choices": WORK, "default": ["LazyAdam"]},
    )
