"""ops.batch_plan against its torch reference, on the occurrences of batches like the public log's.

python bench/batch_plan.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import harness
from log_like import dataset_like_log, vocabulary_like_log

from esmm_fast import ops, reference
from esmm_fast.batches import Batches


def comparison(name: str, group_limit: int | None, threads: int, rounds: int) -> harness.Comparison:
    """Returns the times of the plans of four batches of 4,096 impressions."""
    batches = iter(
        Batches(
            dataset_like_log(),
            4096,
            vocabulary=vocabulary_like_log(),
            group_limit=group_limit,
            threads=1,
        )
    )
    plans = [next(batches).plan for _ in range(4)]
    calls = {
        "torch": lambda: [reference.batch_plan(p.rows, p.offsets) for p in plans],
        "esmm_fast": lambda: [ops.batch_plan(p.rows, p.offsets) for p in plans],
    }
    title = f"plan x {len(plans)}, {name}, N = {plans[0].rows.numel()}"
    return harness.compare(title, calls, rounds=rounds, threads=threads)


def run(options: argparse.Namespace) -> Sequence[harness.Comparison]:
    """Times plan building against torch's sort and unique."""
    return [
        comparison(name, limit, threads, options.rounds)
        for name, limit in (("whole groups", None), ("8 per group", 8), ("2 per group", 2))
        for threads in options.threads
    ]


if __name__ == "__main__":
    harness.main("batch_plan", run)
