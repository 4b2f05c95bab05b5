"""The interleaved harness that every ratio in bench/ comes from.

On a shared machine a single time says little: candidates are timed in turns, round by round, in one
process, and a ratio is the median of the ratios within rounds, with their quartiles as spread.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], object]
RESULTS = Path(__file__).parent / "results"
QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Comparison:
    """Times of several candidates for the same work.

    Args:
        title: The work, with its sizes.
        baseline: The candidate that ratios are relative to.
        threads: Threads torch was given.
        seconds: For each candidate, seconds per call in each round.
        calls: The candidates.
    """

    title: str
    baseline: str
    threads: int
    seconds: dict[str, list[float]]
    calls: Mapping[str, Call]

    def median(self, name: str) -> float:
        """Returns the candidate's median time in seconds."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str) -> tuple[float, float, float]:
        """Returns how many times faster than the baseline: the quartiles over the rounds."""
        pairs = zip(self.seconds[self.baseline], self.seconds[name], strict=True)
        ratios = torch.tensor([base / own for base, own in pairs], dtype=torch.float64)
        low, middle, high = ratios.quantile(torch.tensor(QUARTILES, dtype=torch.float64)).tolist()
        return low, middle, high

    def as_dict(self) -> dict[str, Any]:
        """Returns what is stored: title, threads, and times and ratios of each candidate."""
        return {
            "title": self.title,
            "baseline": self.baseline,
            "threads": self.threads,
            "rounds": len(self.seconds[self.baseline]),
            "candidates": {
                name: {
                    "median_seconds": self.median(name),
                    "ratio": dict(zip(("low", "median", "high"), self.ratio(name), strict=True)),
                    "seconds": self.seconds[name],
                }
                for name in self.seconds
            },
        }


@contextmanager
def _settled(threads: int | None) -> Iterator[None]:
    """Sets torch's threads, and keeps the garbage collector from running inside a sample."""
    before, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(threads or before)
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if collecting:
            gc.enable()


def _sample(call: Call, repeats: int, lead: int = 0) -> float:
    for _ in range(lead):
        call()
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / repeats


def compare(
    title: str,
    calls: Mapping[str, Call],
    *,
    baseline: str | None = None,
    rounds: int = 15,
    warmup: int = 3,
    sample_seconds: float = 0.005,
    lead: int = 0,
    threads: int | None = None,
) -> Comparison:
    """Returns the candidates' times, taken in turns.

    Args:
        title: The work, with its sizes.
        calls: The candidates by name; each does the whole work once.
        baseline: What ratios are relative to; None means the first candidate.
        rounds: Rounds; in each, every candidate is sampled once, another one first each time.
        warmup: Calls of each candidate before the first round.
        sample_seconds: A sample repeats its call until it takes about this long.
        lead: Calls before each sample that are not timed, so that nobody pays for what the
            candidate before left in the caches.
        threads: Threads for torch; None leaves them.
    """
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with _settled(threads):
        repeats = {}
        for name, call in calls.items():
            for _ in range(warmup):
                call()
            repeats[name] = max(1, round(sample_seconds / max(_sample(call, 1), 1e-7)))
        for round_number in range(rounds):
            gc.collect()
            first = round_number % len(names)
            for name in names[first:] + names[:first]:
                seconds[name].append(_sample(calls[name], repeats[name], lead))
        used = torch.get_num_threads()
    return Comparison(title, baseline or names[0], used, seconds, calls)


def _output(*command: str) -> str:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def facts() -> dict[str, Any]:
    """Returns where, when and how this runs: processor, versions, commit, date, command."""
    commit = _output("git", "rev-parse", "--short=12", "HEAD")
    changed = "+changes" if commit and _output("git", "status", "--porcelain", "-uno") else ""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": (commit + changed) or None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", f"bench/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }


def _time_text(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def table(comparisons: Sequence[Comparison]) -> str:
    """Returns one text table: time and ratio of every candidate of every comparison."""
    width = max(len(name) for c in comparisons for name in c.seconds)
    lines = []
    for comparison in comparisons:
        lines.append(f"{comparison.title}, threads: {comparison.threads}")
        for name in comparison.seconds:
            low, middle, high = comparison.ratio(name)
            what = "baseline" if name == comparison.baseline else f"{middle:.2f} x"
            spread = "" if name == comparison.baseline else f"({low:.2f} to {high:.2f})"
            time_text = _time_text(comparison.median(name))
            lines.append(f"  {name:{width}}  {time_text:>9}  {what:>9}  {spread}".rstrip())
    return "\n".join(lines)


def record(benchmark: Any, comparison: Comparison, name: str) -> None:
    """Runs candidate `name` in pytest-benchmark, with the harness's ratios in `extra_info`."""
    benchmark.extra_info["comparison"] = comparison.as_dict()
    benchmark.extra_info["facts"] = facts()
    with _settled(comparison.threads):
        benchmark(comparison.calls[name])


def store(name: str, content: Any) -> None:
    """Writes bench/results/<name>.json, and says so beside what is printed for programs."""
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=1, default=float) + "\n")
    print(f"written: {path}", file=sys.stderr)


def main(name: str, run: Callable[[argparse.Namespace], Sequence[Comparison]], **more: Any) -> None:
    """Runs a bench file from the command line: prints its table, and writes JSON where asked.

    Args:
        name: The bench file's stem; results go to ``bench/results/<name>.json``.
        run: Makes the comparisons from the parsed options.
        more: Further options as ``option=argparse keywords``.
    """
    parser = argparse.ArgumentParser(description=run.__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each comparison")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="threads for torch")
    parser.add_argument("--json", action="store_true", help=f"write bench/results/{name}.json")
    for option, keywords in more.items():
        parser.add_argument(f"--{option}", **keywords)
    options = parser.parse_args()
    start = facts()
    print("\n".join(f"{key}: {value}" for key, value in start.items()))
    comparisons = run(options)
    print(table(comparisons))
    if options.json:
        store(name, {"facts": start, "comparisons": [c.as_dict() for c in comparisons]})
