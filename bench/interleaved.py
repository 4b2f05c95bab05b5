"""Times several ways of one work in turn, so that a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(
    ways: Mapping[str, Callable[[], object]], repeats: int = 7, warm_up: int = 2
) -> dict[str, float]:
    """Returns the median seconds of every way; each repeat runs all of them in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(warm_up + repeats):
        for name, work in ways.items():
            begin = time.perf_counter()
            work()
            if repeat >= warm_up:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


def print_ratios(title: str, medians: Mapping[str, float], ours: str) -> None:
    """Prints how many times the time of `ours` each of the others takes."""
    others = ", ".join(
        f"{name} {seconds / medians[ours]:.2f}x"
        for name, seconds in medians.items()
        if name != ours
    )
    print(f"{title}: {ours} {medians[ours] * 1e3:.2f} ms; {others}")
