"""A log prepared in shards and merged, beside the single `prepare`: seconds, CPU-seconds and peak
memory of each process.

``python bench/shards.py [--log DIR | --impressions N] [--shards 4] [--threads N] [--json]``. The
log is one that `synth` writes (6,600,000 impressions are 3 GB), or DIR with
sample_skeleton_train.csv and common_features_train.csv. Every process comes once, on its own; the
merged tables are compared with those of the single run, byte by byte.
"""

import argparse
import filecmp
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness

from esmm_fast.data.synth import synth

_RUN = """
import json, os, re, sys, time
from pathlib import Path
from esmm_fast.data.merge_shards import merge_shards
from esmm_fast.data.prepare_log import prepare
begin, cpu = time.perf_counter(), sum(os.times()[:2])
{call}
print(json.dumps({{
    "wall_seconds": time.perf_counter() - begin,
    "cpu_seconds": sum(os.times()[:2]) - cpu,
    "peak_rss_bytes": 1024 * int(
        re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]
    ),
}}))
"""


def measured(call: str) -> dict[str, Any]:
    """Returns the facts of one call in a process of its own."""
    command = [sys.executable, "-c", _RUN.format(call=call)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, help="folder of the log")
    parser.add_argument("--impressions", type=int, default=6_600_000)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true", help="write bench/results/shards.json")
    parser.add_argument("--note", help="about the machine, for the record")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if (log := options.log) is None:
            log = folder / "log"
            synth(log, options.impressions, 1, seed=0)
        files = [log / "sample_skeleton_train.csv", log / "common_features_train.csv"]
        given = f"skeleton={str(files[0])!r}, common={str(files[1])!r}, threads={options.threads}"
        out, parts = folder / "single", range(1, options.shards + 1)
        shards = [str(folder / f"shard{part}") for part in parts]
        record = {
            "facts": {**harness.facts(), "threads": options.threads, "note": options.note},
            "text_bytes": sum(file.stat().st_size for file in files),
            "single": measured(f"prepare({given}, out={str(out)!r})"),
            "shards": [
                measured(f"prepare({given}, out={path!r}, shard=({part}, {options.shards}))")
                for part, path in zip(parts, shards, strict=True)
            ],
            "merge": measured(f"merge_shards({shards!r}, {str(folder / 'merged')!r})"),
            "dataset_bytes": sum(file.stat().st_size for file in out.iterdir()),
        }
        tables = ["impressions.arrow", "common_rows.arrow", "counts.arrow"]
        _, wrong, absent = filecmp.cmpfiles(out, folder / "merged", tables, shallow=False)
        record["tables_that_differ"] = wrong + absent
    print(json.dumps(record, indent=1))
    if options.json:
        harness.store("shards", record)
    if record["tables_that_differ"]:
        sys.exit(f"not the single run's: {', '.join(record['tables_that_differ'])}")


if __name__ == "__main__":
    main()
