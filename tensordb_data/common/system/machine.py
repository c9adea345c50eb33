"""What this machine has: processors, memory, and a name."""

from __future__ import annotations

import os


def cpus() -> int:
    """The processors that this process may use, as far as the system tells."""
    if hasattr(os, "process_cpu_count"):  # from Python 3.13 on; heeds -X cpu_count
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> int | None:
    """The memory of this machine in bytes; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
