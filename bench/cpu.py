"""The table of what an embedding step costs on a CPU, against its peers and against the memory.

Each run measures some rows and writes them into bench/results/cpu.json beside those that are there;
without a choice of rows it only prints the table.

    PYTHONPATH=. python bench/cpu.py --measure lazy_adam --groups "whole groups" --threads 2
    PYTHONPATH=. python bench/cpu.py

The clock starts at table rows and offsets; "ahead" leaves the plan out, which `Dataset.batches`
makes in its own threads. The limit: the bytes that the step must move (`step_bytes`) over the
measured bandwidth of a copy with the same number of threads.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

import embedding_update
import harness
import synth_log
import torch
from embedding_update import AHEAD, FBGEMM, JOINED, ONE_TABLE, OURS, PER_FIELD
from synth_log import DIM, GROUPS, Inputs

RESULT = harness.RESULTS / "cpu.json"
LINE = 64
WANTED = {  # times faster than the peer, plan included, at B = 4,096 (joined bags: 512), 2 threads
    ("lazy_adam", "whole groups", ONE_TABLE): 12,
    ("lazy_adam", "whole groups", PER_FIELD): 12,
    ("lazy_adam", "whole groups", JOINED): 220,
    ("lazy_adam", "8 per group", ONE_TABLE): 20,
    ("lazy_adam", "clicked only", ONE_TABLE): 20,
    ("rowwise_adagrad", "whole groups", FBGEMM): 6,
    ("rowwise_adagrad", "8 per group", FBGEMM): 6,
    ("rowwise_adagrad", "clicked only", FBGEMM): 5,
    ("joined_weighted", "joined rows", FBGEMM): 7,
    ("joined_unweighted", "joined rows", FBGEMM): 3,
}
MEASURES = ("lazy_adam", "rowwise_adagrad", "joined_weighted", "joined_unweighted")


def copy_bandwidth(threads: int) -> float:
    """Returns the bytes per second, read and written, of a copy of 256 MB: the best of 7."""
    torch.set_num_threads(threads)
    source, target = torch.ones(64 << 20), torch.ones(64 << 20)
    seconds = []
    for _ in range(7):
        begin = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - begin)
    return 2 * source.nbytes / min(seconds)


def step_bytes(bags: int, occurrences: int, touched: int, row_elements: int) -> dict[str, int]:
    """Returns the bytes each stage must move at least, in whole cache lines for table rows.

    Every touched row is read once forward (its weight) and read and written once by the update
    (weight and states); index arrays, weights, outputs and their gradient are streamed once.
    """

    def row_lines(elements: int) -> int:
        return -(-elements * 4 // LINE) * LINE

    index, pooled = 4 * occurrences, 4 * bags * DIM
    plan = 4 * bags + index + (3 * index + 8 * touched)
    forward = touched * row_lines(DIM) + 4 * bags + 2 * index + pooled
    update = 2 * touched * row_lines(row_elements) + 3 * index + 8 * touched + pooled
    return {"plan": plan, "forward": forward, "update": update}


def _bytes(inputs: Inputs, measure: str) -> dict[str, int]:
    elements = 3 * DIM if measure == "lazy_adam" else DIM + 1
    if not measure.startswith("joined"):
        plan = inputs.batch.plan
        sizes = len(plan.offsets) - 1, len(plan.rows), len(plan.touched_rows)
    else:
        rows, offsets, _ = inputs.joined()
        sizes = len(offsets) - 1, len(rows), len(rows.unique())
    return step_bytes(*sizes, elements)


def measured(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields the rows of the table that the options ask for."""
    for measure in options.measure:
        joined = measure.startswith("joined")
        for groups in ["joined rows"] if joined else options.groups:
            for threads in options.threads:
                common = {"rounds": options.rounds}
                if joined:
                    comparison = embedding_update.raw_bags(
                        options.batch, threads, weighted=measure == "joined_weighted", **common
                    )
                    inputs = synth_log.inputs(options.batch)[0]
                else:
                    comparison = embedding_update.comparison(
                        options.batch,
                        threads,
                        groups,
                        "LazyAdam" if measure == "lazy_adam" else "RowwiseAdagrad",
                        joined=options.joined,
                        **common,
                    )
                    inputs = synth_log.inputs(options.batch, groups)[0]
                yield {
                    "key": [measure, groups, options.batch, threads],
                    "facts": harness.facts(),
                    "bytes": _bytes(inputs, measure),
                    "copy_bytes_per_second": copy_bandwidth(threads),
                    **comparison.as_dict(),
                }


def ratio(row: dict[str, Any], ours: str, peer: str) -> float:
    """Returns how many times the time of `ours` the peer takes: the median over the rounds."""
    pairs = zip(row["candidates"][peer]["seconds"], row["candidates"][ours]["seconds"], strict=True)
    return float(torch.tensor([theirs / own for theirs, own in pairs]).median())


def lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yields the table as Markdown, one line per row and peer."""
    yield "| work | B | threads | all | plan ahead | limit | against | ratio | ahead | wanted |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        measure, groups, batch, threads = row["key"]
        limit = sum(row["bytes"].values()) / row["copy_bytes_per_second"]
        own = {name: row["candidates"].get(name) for name in (OURS, AHEAD)}
        took = [f"{o['median_seconds'] * 1e3:.2f} ms" if o else "-" for o in own.values()]
        times = f"{row['candidates'][OURS]['median_seconds'] / limit:.1f}"
        head = f"| {measure}, {groups} | {batch} | {threads} | {took[0]} | {took[1]} | "
        head += f"{limit * 1e3:.2f} ms ({times} x) | "
        for peer, taken in row["candidates"].items():
            if peer in own:
                continue
            ahead = f"{ratio(row, AHEAD, peer):.1f} x" if own[AHEAD] else "-"
            wanted = WANTED.get((measure, groups, peer)) if threads == 2 else None
            wanted = wanted if batch == (512 if measure.startswith("joined") else 4096) else None
            yield (
                f"{head}{peer}: {taken['median_seconds'] * 1e3:.1f} ms | "
                f"{ratio(row, OURS, peer):.1f} x | {ahead} | {f'{wanted} x' if wanted else ''} |"
            )


def _order(key: tuple[Any, ...]) -> tuple[Any, ...]:
    measure, groups, batch, threads = key
    return MEASURES.index(measure), (*GROUPS, groups).index(groups), batch, threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--measure", nargs="+", choices=MEASURES, default=[])
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--batch", type=int, default=4096, help="B; 512 for joined rows")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--joined", action="store_true", help="nn.EmbeddingBag on joined rows too")
    options = parser.parse_args()
    stored = json.loads(RESULT.read_text()) if RESULT.exists() else []
    by_key: dict[tuple[Any, ...], dict[str, Any]] = {tuple(row["key"]): row for row in stored}
    for row in measured(options):
        by_key[tuple(row["key"])] = row
        rows = [by_key[key] for key in sorted(by_key, key=_order)]
        RESULT.write_text(json.dumps(rows, indent=1) + "\n")
    rows = [by_key[key] for key in sorted(by_key, key=_order)]
    places = {(r["facts"]["processor"], r["facts"]["torch"], r["facts"]["commit"]) for r in rows}
    for processor, torch_version, commit in sorted(places, key=str):
        print(f"{processor}, torch {torch_version}, commit {commit}")
    print("\n".join(lines(rows)))


if __name__ == "__main__":
    main()
