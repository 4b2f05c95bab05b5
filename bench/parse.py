"""The parser beside a pass that only reads the same bytes and counts line ends, and `prepare` as a
whole.

``python bench/parse.py [--log DIR | --impressions N] [--threads 1 2] [--json]``. The log is one
that `synth` writes, or DIR with sample_skeleton_train.csv and common_features_train.csv; it is read
once before, so that it comes from the page cache.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import esmm_fast._native as _native
import harness

from esmm_fast.logs import LogReader
from esmm_fast.prepare_log import prepare
from esmm_fast.schema import ALI_CCP


def tokenise(files: list[Path], threads: int) -> None:
    """Reads both files to columns, fully checked, and lets each block go; ids are not counted."""
    reader = LogReader(files[0], files[1], ALI_CCP, threads=threads, count_ids=False)
    for side in reader.sides:
        for _ in reader.read(side):
            pass


def newlines(files: list[Path], threads: int) -> None:
    for file in files:
        _native.count_newlines(str(file), threads)


def whole(files: list[Path], out: Path, threads: int) -> None:
    shutil.rmtree(out, ignore_errors=True)
    prepare(skeleton=files[0], common=files[1], out=out, threads=threads)


def comparisons(folder: Path, out: Path, threads: int, rounds: int) -> list[harness.Comparison]:
    files = [folder / "sample_skeleton_train.csv", folder / "common_features_train.csv"]
    found = []
    for what, chosen in (
        ("both files", files),
        ("skeleton", files[:1]),
        ("common rows", files[1:]),
    ):
        size = sum(file.stat().st_size for file in chosen)
        calls: dict[str, Callable[[], object]] = {
            "count line ends": lambda chosen=chosen: newlines(chosen, threads),  # type: ignore[misc]
        }
        if what == "both files":
            calls["tokenise"] = lambda: tokenise(files, threads)
            calls["prepare"] = lambda: whole(files, out, threads)
        elif what == "skeleton":
            calls["tokenise"] = lambda: one_side(files, "impression", threads)
        else:
            calls["tokenise"] = lambda: one_side(files, "common", threads)
        title = f"{what}, {size / 1e6:,.0f} MB of text"
        comparison = harness.compare(title, calls, rounds=rounds, warmup=1, threads=threads)
        rates = ", ".join(f"{n} {size / comparison.median(n) / 1e9:.2f} GB/s" for n in calls)
        print(f"{title}, threads: {threads}: {rates}")
        found.append(comparison)
    return found


def one_side(files: list[Path], side: str, threads: int) -> None:
    """Tokenises one file: the skeleton with its keys in place of common rows, or the common
    file."""
    reader = LogReader(
        files[0], files[1] if side == "common" else None, ALI_CCP, threads=threads, count_ids=False
    )
    for _ in reader.read(side):  # type: ignore[arg-type]
        pass


def run(options: argparse.Namespace) -> Sequence[harness.Comparison]:
    """Speed of the log parser in ratios to a newline count over the same bytes."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.log
        if folder is None:
            from esmm_fast.synth import synth

            folder = Path(scratch, "log")
            synth(folder, options.impressions, 1000, seed=0)
        return [
            comparison
            for threads in options.threads
            for comparison in comparisons(
                Path(folder), Path(scratch, "dataset"), threads, options.rounds
            )
        ]


if __name__ == "__main__":
    harness.main(
        "parse",
        run,
        log={"type": Path, "help": "folder of a log instead of one from synth"},
        impressions={"type": int, "default": 1_000_000, "help": "impressions of the synth log"},
    )
