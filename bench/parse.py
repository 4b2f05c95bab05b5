"""The parser beside a pass that only reads the same bytes and counts line ends, and `prepare`
beside that pass and beside loaders of the same log in other tools.

``python bench/parse.py [--log DIR | --impressions N] [--threads 1 2] [--json]``. The log is one
that `synth` writes (6,600,000 impressions are 3 GB), or DIR with sample_skeleton_train.csv and
common_features_train.csv; every way reads it once before it is timed, so it comes from the page
cache, and what is written stays there. The peers (``bench/peers``) are slow or hold everything in
memory: they run on a smaller log of their own, with `prepare` on the same files beside them;
``--peers none`` leaves them out, ``--only peers`` leaves out the rest.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import esmm_fast._native as _native
import harness
import peers

from esmm_fast.data.logs import LogReader
from esmm_fast.data.prepare_log import prepare
from esmm_fast.data.synth import synth
from esmm_fast.schema import ALI_CCP


def tokenise(files: list[Path], threads: int) -> None:
    """Reads both files to columns, fully checked, and lets each block go; ids are not counted."""
    reader = LogReader(files[0], files[1], ALI_CCP, threads=threads, count_ids=False)
    for side in reader.sides:
        for _ in reader.read(side):
            pass


def newlines(files: list[Path], threads: int) -> None:
    """Counts the line ends of both files."""
    for file in files:
        _native.count_newlines(str(file), threads)


def whole(files: list[Path], out: Path, threads: int | None) -> None:
    """Makes a dataset of the log, in place of the one before."""
    shutil.rmtree(out, ignore_errors=True)
    prepare(skeleton=files[0], common=files[1], out=out, threads=threads)


def log_files(folder: Path) -> list[Path]:
    return [folder / "sample_skeleton_train.csv", folder / "common_features_train.csv"]


def megabytes(files: Sequence[Path]) -> float:
    return sum(file.stat().st_size for file in files) / 1e6


def compare(
    title: str, files: list[Path], calls: dict[str, Callable[[], object]], rounds: int, threads: int
) -> harness.Comparison:
    """Returns the comparison, after a line with its rates."""
    size = megabytes(files)
    title = f"{title}, {size:,.0f} MB of text"
    comparison = harness.compare(title, calls, rounds=rounds, warmup=1, threads=threads)
    rates = ", ".join(f"{name} {size / comparison.median(name):,.1f} MB/s" for name in calls)
    print(f"{title}, threads: {threads}: {rates}", flush=True)
    return comparison


def beside_newlines(folder: Path, out: Path, threads: int, rounds: int) -> list[harness.Comparison]:
    """Tokenising and `prepare`, in ratios to the newline pass with as many threads."""
    files = log_files(folder)
    return [
        compare(
            "both files",
            files,
            {
                "count line ends": lambda: newlines(files, threads),
                "tokenise": lambda: tokenise(files, threads),
                "prepare": lambda: whole(files, out, threads),
            },
            rounds,
            threads,
        )
    ]


def beside_peers(
    names: Sequence[str], scratch: Path, impressions: int, rounds: int, threads: int
) -> list[harness.Comparison]:
    """`prepare` in ratios to each peer on the same files, after a check that both find the same."""
    found = []
    folder = scratch / "peer_log"
    if names:
        synth(folder, impressions, 1000, seed=0)
    files = log_files(folder)
    for name in names:
        load = peers.peer(name)
        if load is None:
            print(f"peer {name}: not installed ({', '.join(peers.NAMES[name])}), left out")
            continue
        check_peer(load, files, scratch)

        def run_peer(load: peers.Load = load) -> None:
            shutil.rmtree(scratch / "peer", ignore_errors=True)
            load(files[0], files[1], scratch / "peer")

        calls: dict[str, Callable[[], object]] = {
            name: run_peer,
            "prepare": lambda: whole(files, scratch / "dataset", threads),
        }
        found.append(compare(f"peer {name}", files, calls, rounds, threads))
        shutil.rmtree(scratch / "peer")
    return found


def check_peer(load: peers.Load, files: list[Path], scratch: Path) -> None:
    """Raises ValueError if a peer does not find what `prepare` finds."""
    whole(files, scratch / "dataset", None)
    own = peers.of_dataset(scratch / "dataset")
    loaded = load(files[0], files[1], scratch / "checked")
    shutil.rmtree(scratch / "checked")
    if not loaded.agrees_with(own):
        raise ValueError(f"peer: expected what prepare found, {own}, got {loaded}")


def run(options: argparse.Namespace) -> Sequence[harness.Comparison]:
    """Speed of the log parser in ratios to a newline count over the same bytes, and of `prepare` in
    ratios to other tools."""
    found: list[harness.Comparison] = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as temporary:
        scratch = Path(temporary)
        if options.only != "peers":
            folder = options.log
            if folder is None:
                folder = scratch / "log"
                synth(folder, options.impressions, 1000, seed=0)
            for threads in options.threads:
                found += beside_newlines(folder, scratch / "dataset", threads, options.rounds)
        if options.only != "newlines":
            names = list(peers.NAMES) if options.peers == ["all"] else options.peers
            names = [name for name in names if name != "none"]
            found += beside_peers(
                names, scratch, options.peer_impressions, options.rounds, max(options.threads)
            )
    return found


def test_parse(benchmark, tmp_path):
    synth(tmp_path / "log", 2_000, 1, seed=0)
    one = beside_newlines(tmp_path / "log", tmp_path / "dataset", threads=2, rounds=2)[0]
    harness.record(benchmark, one, "prepare")


if __name__ == "__main__":
    harness.main(
        "parse",
        run,
        log={"type": Path, "help": "folder of a log instead of one from synth"},
        impressions={"type": int, "default": 6_600_000, "help": "impressions of the synth log"},
        peers={"nargs": "+", "default": ["all"], "help": f"of {', '.join(peers.NAMES)}; all; none"},
        **{
            "peer-impressions": {
                "type": int,
                "default": 500_000,
                "help": "impressions of the peers' log",
            }
        },
        only={"choices": ["newlines", "peers"], "help": "one part alone"},
        scratch={"type": Path, "help": "folder for logs and datasets (default: the temporary one)"},
    )
