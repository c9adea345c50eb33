"""Stops processes of a test run for moments, at random, as a machine does that has too much to do.

`tests/shake.py --pauses` runs it. It ends, and lets all go on, when its standard input is closed.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import sys
import time
from pathlib import Path

SHORTEST, LONGEST = 0.2, 3.0
TICK = 0.1


def marked(mark: str) -> list[int]:
    """The processes with a mark in their environment that are not stopped: what a test has stopped is left alone."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state = (entry / "stat").read_bytes().rpartition(b")")[2].split()[0]
                if state not in b"TtZX" and mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def signal_(process: int, number: signal.Signals) -> None:
    """To a process by its descriptor, as its number may be another's by then; if it has ended, nothing happens."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(process, number)


def main(mark: str, every: float) -> None:
    """See above.

    Args:
        mark: The variable and its value, `NAME=value`.
        every: Seconds from one stop of a process to the next, about.
    """
    stopped: dict[int, float] = {}
    while not select.select([sys.stdin], [], [], TICK)[0]:
        now = time.monotonic()
        for process, until in list(stopped.items()):
            if until < now:
                signal_(process, signal.SIGCONT)
                del stopped[process]
                os.close(process)
        for pid in marked(mark):
            if random.random() < TICK / every:
                with contextlib.suppress(ProcessLookupError):
                    process = os.pidfd_open(pid)
                    stopped[process] = now + random.uniform(SHORTEST, LONGEST)
                    signal_(process, signal.SIGSTOP)
    for process in stopped:
        signal_(process, signal.SIGCONT)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C on the terminal is for the run, whose end closes our input
    main(sys.argv[1], float(sys.argv[2]))
