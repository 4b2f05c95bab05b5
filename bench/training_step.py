"""A whole training step, from table rows and offsets to updated parameters, against bare towers;
and its stages."""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import cycle

import harness
import pytest
import synth_log
import torch
from model import HIDDEN, IN_COMMON, IN_IMPRESSION, plain_tower

from esmm_fast import ESMM, Batch, ops
from esmm_fast.schedule import default_optimizers

TOWERS = "two plain towers, forward + backward"
ALL = "esmm_fast, whole step"
AHEAD = "esmm_fast, whole step, plan made ahead"
STAGES = ("plan", "pooling", "towers, loss", "backward", "tables' update", "towers' update")


def autocast(bfloat16: bool) -> torch.autocast | nullcontext[None]:
    return torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext()


def bare_towers(impressions: int, bfloat16: bool) -> Callable[[], object]:
    """Two nn.Sequential on inputs that lie ready; no embedding, split, loss or optimizer."""
    torch.manual_seed(0)
    towers = [plain_tower() for _ in range(2)]
    parameters = [p for tower in towers for p in tower.parameters()]
    ready = [torch.randn(impressions, IN_COMMON + IN_IMPRESSION) for _ in range(4)]
    turn = cycle([x.requires_grad_() for x in ready])
    outer = torch.randn(impressions, 2)

    def call() -> object:
        x = next(turn)
        with autocast(bfloat16):
            logits = torch.cat([tower(x) for tower in towers], 1)
        return torch.autograd.grad(logits, [x, *parameters], outer.to(logits.dtype))

    return call


class Training:
    """ESMM with the optimizers of `fit`."""

    def __init__(self, inputs: Sequence[synth_log.Inputs], bfloat16: bool) -> None:
        schema = inputs[0].schema
        self.rows = sum(schema.table_rows.values())
        self.model = ESMM(schema, synth_log.DIM, HIDDEN)
        self.optimizers = default_optimizers(self.model)
        self.bfloat16 = bfloat16
        self.batches: Iterator[Batch] = cycle([each.batch for each in inputs])

    def step(self, *, ahead: bool, times: list[float] | None = None) -> None:
        """Takes a step; appends the time at the end of each of STAGES to `times`, if given."""

        def ends(*_: object) -> None:
            if times is not None:
                times.append(time.perf_counter())

        batch = next(self.batches)
        if not ahead:
            old = batch.plan
            plan = ops.batch_plan(old.rows, old.offsets, old.weights, self.rows)
            batch = Batch(plan, batch.common, batch.common_of_impression, batch.labels)
        ends()
        pooled = self.model.tables.register_forward_hook(ends)
        with autocast(self.bfloat16):
            loss = self.model.loss(self.model(batch), batch)
        pooled.remove()
        ends()
        loss.backward()
        ends()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
            ends()


def comparison(
    impressions: int,
    threads: int,
    groups: str = "whole groups",
    bfloat16: bool = False,
    rounds: int = 11,
    log: int = synth_log.FULL,
) -> harness.Comparison:
    inputs = synth_log.inputs(impressions, groups, impressions=log)
    training = Training(inputs, bfloat16)
    calls = {
        TOWERS: bare_towers(impressions, bfloat16),
        ALL: lambda: training.step(ahead=False),
        AHEAD: lambda: training.step(ahead=True),
    }
    dtype = "bfloat16 autocast" if bfloat16 else "float32"
    title = f"training step, {groups}, {inputs[0]}, D = {synth_log.DIM}, {dtype}"
    return harness.compare(title, calls, rounds=rounds, threads=threads)


def stages(
    impressions: int, threads: int, groups: str, bfloat16: bool = False, rounds: int = 40
) -> harness.Comparison:
    """Returns the time of each stage of a step; the ratio is the step's time over the stage's."""
    inputs = synth_log.inputs(impressions, groups)
    training = Training(inputs, bfloat16)
    seconds: dict[str, list[float]] = {name: [] for name in ("whole step", *STAGES)}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    for turn in range(len(inputs) + rounds):
        times = [time.perf_counter()]
        training.step(ahead=False, times=times)
        if turn >= len(inputs):  # every batch once, before
            seconds["whole step"].append(times[-1] - times[0])
            for name, begin, end in zip(STAGES, times[:-1], times[1:], strict=True):
                seconds[name].append(end - begin)
    torch.set_num_threads(before)
    dtype = "bfloat16 autocast" if bfloat16 else "float32"
    title = f"stages of a training step, {groups}, {inputs[0]}, D = {synth_log.DIM}, {dtype}"
    return harness.Comparison(title, "whole step", threads, seconds, {})


def run(options: argparse.Namespace) -> Sequence[harness.Comparison]:
    """ESMM's whole training step against the forward and backward of its bare towers."""
    chosen = [
        (impressions, threads, groups, dtype == "bfloat16")
        for impressions in options.impressions
        for groups in options.groups
        for dtype in options.dtypes
        for threads in options.threads
    ]
    measured = [comparison(*each, options.rounds) for each in chosen]
    return measured + [stages(*each) for each in chosen] if options.stages else measured


@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
def test_training_step(benchmark, bfloat16):
    measured = comparison(1024, 2, bfloat16=bfloat16, rounds=5, log=synth_log.SMALL)
    harness.record(benchmark, measured, ALL)


if __name__ == "__main__":
    harness.main(
        "training_step",
        run,
        impressions={"type": int, "nargs": "+", "default": [4096], "help": "B"},
        stages={"action": "store_true", "help": "the time of each stage too"},
        groups={"nargs": "+", "choices": synth_log.GROUPS, "default": ["whole groups"]},
        dtypes={
            "nargs": "+",
            "choices": ["float32", "bfloat16"],
            "default": ["float32", "bfloat16"],
        },
    )
