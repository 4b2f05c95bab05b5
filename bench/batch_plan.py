"""ops.batch_plan against its torch reference, on the occurrences of batches like the public log's.

python bench/batch_plan.py
"""

import torch
from interleaved import interleaved, print_ratios
from log_like import dataset_like_log, vocabulary_like_log

from esmm_fast import ops, reference
from esmm_fast.batches import Batches


def main() -> None:
    dataset, vocabulary = dataset_like_log(), vocabulary_like_log()
    for name, batch_size, group_limit in (
        ("whole groups", 4096, None),
        ("8 per group", 4096, 8),
        ("2 per group", 4096, 2),
    ):
        batches = iter(
            Batches(dataset, batch_size, vocabulary=vocabulary, group_limit=group_limit, threads=1)
        )
        plans = [next(batches).plan for _ in range(4)]
        for threads in (1, 2):
            torch.set_num_threads(threads)
            medians = interleaved(
                {
                    "ops": lambda plans=plans: [ops.batch_plan(p.rows, p.offsets) for p in plans],
                    "torch": lambda plans=plans: [
                        reference.batch_plan(p.rows, p.offsets) for p in plans
                    ],
                }
            )
            title = f"plan x {len(plans)}, {name}, N={plans[0].rows.numel()}, {threads} threads"
            print_ratios(title, medians, "ops")


if __name__ == "__main__":
    main()
