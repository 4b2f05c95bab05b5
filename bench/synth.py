"""Speed of synth in MB of text per second, beside `cp` and a plain write of the same bytes.

The three take turns, so that a slow moment of the machine meets all of them; medians and their
ratios are printed as one JSON object. Run: ``python bench/synth.py [--impressions N] [--out DIR]``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from esmm_fast.synth import VERSION, synth

_PIECE = 1 << 20  # bytes per write


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _write(source: Path, target: Path) -> float:
    """Returns the seconds that writing the bytes of `source` takes, already in memory."""
    data = memoryview(source.read_bytes())

    def write() -> None:
        with open(target, "wb", buffering=0) as file:
            for begin in range(0, len(data), _PIECE):
                file.write(data[begin : begin + _PIECE])

    return _seconds(write)


def measure(folder: Path, impressions: int, threads: int | None, repeats: int) -> dict[str, object]:
    """Returns medians in MB/s (10^6 bytes of text) and the machine they hold for."""
    seconds: dict[str, list[float]] = {"synth": [], "cp": [], "write": []}
    text = 0
    for _ in range(repeats):
        log, copy = folder / "log", folder / "copy"
        seconds["synth"].append(_seconds(lambda: synth(log, impressions, threads=threads)))  # noqa: B023
        files = sorted(log.glob("*.csv"))
        text = sum(file.stat().st_size for file in files)
        copy.mkdir()
        command = ["cp", *map(str, files), str(copy)]
        seconds["cp"].append(_seconds(lambda: subprocess.run(command, check=True)))  # noqa: B023
        shutil.rmtree(copy)
        copy.mkdir()
        seconds["write"].append(sum(_write(file, copy / file.name) for file in files))
        shutil.rmtree(copy)
        shutil.rmtree(log)
    rate = {name: text / 1e6 / statistics.median(times) for name, times in seconds.items()}
    return {
        "megabytes_per_second": {name: round(value, 1) for name, value in rate.items()},
        "cp_over_synth": round(rate["cp"] / rate["synth"], 2),
        "write_over_synth": round(rate["write"] / rate["synth"], 2),
        "megabytes": round(text / 1e6, 1),
        "impressions": impressions,
        "threads": threads or len(os.sched_getaffinity(0)),
        "repeats": repeats,
        "generator_version": VERSION,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.date.today().isoformat(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--impressions", type=int, default=500_000, help="of train; test is as large"
    )
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--out", type=Path, default=None, help="where to write (default: the temporary folder)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        made = measure(Path(folder), options.impressions, options.threads, options.repeats)
    print(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
