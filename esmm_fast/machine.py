"""The machine: what this process may use of it and has used, and what results depend on."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MEMORY_OF_GROUPS = (  # of version 2 and 1: folder, limit, used, what of it is only cache
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def usable_cores() -> int:
    """Returns the cores that this process may run on: the affinity mask where there is one."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Returns what the times depend on."""
    import torch

    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "cpus": usable_cores(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def now() -> str:
    """Returns date and time with the zone, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def available_memory(root: Path = Path("/")) -> int | None:
    """Returns the bytes that this process can still take, or None where the system does not say.

    The memory that Linux calls available, or what is left below the limit of the control group (a
    container's) or of one around it, where that is less.

    Args:
        root: Below it /proc and /sys are read.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    for kind, limit, used, cache in _MEMORY_OF_GROUPS:
        for folder in _control_groups(root, kind):
            try:
                most = int((folder / limit).read_text())
                taken = int((folder / used).read_text())
                stat = dict(line.split() for line in (folder / "memory.stat").open())
            except (OSError, ValueError):  # no such group, or no limit: "max"
                continue
            found.append(most - taken + int(stat.get(cache, 0)))
    return min(found, default=None)


def _control_groups(root: Path, kind: str) -> set[Path]:
    """Returns the folders of this process's control group of a kind and of those around it."""
    top = root / "sys/fs/cgroup" / kind
    groups = {top}
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if kind in controllers.split(","):  # version 2 has one line, of no controllers
                below = Path(path.lstrip("/"))
                groups |= {top / part for part in (below, *below.parents)}
    return groups


class PeakMemory:
    """What `peak_memory` measured."""

    peak: int | None = None
    """Bytes resident at most; None where the system does not say."""


@contextlib.contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    """Measures the greatest resident memory of the process inside a `with`, on Linux."""
    measured = PeakMemory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    except OSError:
        yield measured
        return
    yield measured
    status = Path("/proc/self/status").read_text()
    if found := re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE):
        measured.peak = int(found[1]) * 1024


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
