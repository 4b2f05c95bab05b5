"""What this process may use of the machine."""

import os


def usable_cores() -> int:
    """Returns the cores that this process may run on: the affinity mask where there is one."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
