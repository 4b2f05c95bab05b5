"""ops.batch_plan against its torch reference, on the occurrences of batches like the public log's.

python bench/batch_plan.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import harness
import pytest
import synth_log

from esmm_fast import ops, reference


def comparison(
    groups: str, threads: int, rounds: int, batch_size: int = 4096, **log: int
) -> harness.Comparison:
    """Returns the times of the plans of four batches."""
    inputs = synth_log.inputs(batch_size, groups, rotation=4, **log)  # type: ignore[arg-type]
    plans = [each.batch.plan for each in inputs]
    rows = sum(inputs[0].schema.table_rows.values())
    calls = {
        "torch": lambda: [reference.batch_plan(p.rows, p.offsets) for p in plans],
        "esmm_fast": lambda: [ops.batch_plan(p.rows, p.offsets, None, rows) for p in plans],
    }
    title = f"plan x {len(plans)}, {groups}, {inputs[0]}"
    return harness.compare(title, calls, rounds=rounds, threads=threads)


def run(options: argparse.Namespace) -> Sequence[harness.Comparison]:
    """Times plan building against torch's sort and unique."""
    return [
        comparison(groups, threads, options.rounds)
        for groups in synth_log.GROUPS
        for threads in options.threads
    ]


@pytest.mark.parametrize("threads", [1, 2])
def test_batch_plan(benchmark, threads):
    measured = comparison(
        "whole groups", threads, 5, 1024, impressions=synth_log.SMALL, whole=False
    )
    harness.record(benchmark, measured, "esmm_fast")


if __name__ == "__main__":
    harness.main("batch_plan", run)
