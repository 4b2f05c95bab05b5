"""Speed of synth beside `cp` and a plain write of the same bytes.

python bench/synth.py [--impressions N] [--out DIR]. DIR is where the files go; none: the temporary
folder.
"""

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import harness

from esmm_fast.data.synth import synth

PIECE = 1 << 20  # bytes per write


def comparison(folder: Path, impressions: int, threads: int, rounds: int) -> harness.Comparison:
    log, copy = folder / "log", folder / "copy"
    synth(log, impressions, threads=threads)
    files = sorted(log.glob("*.csv"))
    texts = [memoryview(file.read_bytes()) for file in files]
    megabytes = sum(map(len, texts)) / 1e6

    def fresh() -> Path:
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        return copy

    def generate() -> None:
        fresh().rmdir()
        synth(copy, impressions, threads=threads)

    def write() -> None:
        target = fresh()
        for file, text in zip(files, texts, strict=True):
            with open(target / file.name, "wb", buffering=0) as out:
                for begin in range(0, len(text), PIECE):
                    out.write(text[begin : begin + PIECE])

    def cp() -> None:
        subprocess.run(["cp", *map(str, files), str(fresh())], check=True)

    title = f"synth, {impressions} impressions of each half, {megabytes:,.0f} MB of text"
    calls = {"synth": generate, "cp": cp, "write": write}
    found = harness.compare(title, calls, rounds=rounds, warmup=1, threads=threads)
    for name in calls:
        print(f"{megabytes / found.median(name):8,.0f} MB/s  {name}, {threads} threads")
    return found


def run(options: argparse.Namespace) -> Sequence[harness.Comparison]:
    """Megabytes of text per second that synth writes, beside cp and a plain write."""
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        return [
            comparison(Path(folder) / str(threads), options.impressions, threads, options.rounds)
            for threads in options.threads
        ]


def test_synth(benchmark, tmp_path):
    harness.record(benchmark, comparison(tmp_path, 2_000, 2, rounds=3), "synth")


if __name__ == "__main__":
    harness.main(
        "synth",
        run,
        impressions={"type": int, "default": 300_000, "help": "of train; test is as large"},
        out={"type": Path, "help": "where to write"},
    )
