"""What a test may leave behind: nothing. Threads, child processes, open files and mapped files, before and after."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from pymongo.periodic_executor import PeriodicExecutor

from tests import warm

# Helpers of multiprocessing, started once and kept until the interpreter ends.
_KEPT = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
# Thread pools, event loops and runtimes that libraries start on first use hold a few descriptors for good.
_POOLED = 12


def _was_told_to_end(thread: threading.Thread) -> bool:
    """Whether it is one of PyMongo's that has been told to end, and hears of it within half a second."""
    executor = getattr(getattr(thread, "_target", None), "__self__", None)
    return isinstance(executor, PeriodicExecutor) and executor._stopped


@dataclass
class Census:
    """What this process holds at one moment."""

    threads: frozenset[threading.Thread]
    children: dict[str, frozenset[str]]
    """Child processes, with those among them that they descend from."""
    files: Counter[str]
    others: int

    @staticmethod
    def take() -> Census:
        names = []
        for entry in list(Path("/proc/self/fd").iterdir()):
            with contextlib.suppress(OSError):
                names.append(os.readlink(entry))
        temporary = tempfile.gettempdir() + os.sep
        maps = Path("/proc/self/maps").read_text().splitlines()
        mapped = {line.split(maxsplit=5)[-1] for line in maps if temporary in line}
        known: dict[int, str] = {}
        above: dict[int, list[int]] = {}
        for child in psutil.Process().children(recursive=True):
            if child.pid in warm.kept():
                continue
            with contextlib.suppress(psutil.Error):
                command = " ".join(child.cmdline())
                if command and not any(kept in command for kept in _KEPT):
                    above[child.pid] = [parent.pid for parent in child.parents()]
                    known[child.pid] = f"process {child.pid}: {command[:120]}"
        children = {
            name: frozenset(known[parent] for parent in above[pid] if parent in known) for pid, name in known.items()
        }
        return Census(
            # A dummy stands for a thread of TensorFlow's own pool that has called Python once.
            threads=frozenset(
                thread for thread in threading.enumerate()
                if not isinstance(thread, threading._DummyThread) and not _was_told_to_end(thread)
            ),
            children=children,
            # A checkout may lie in the temporary folder too, and what libraries have loaded stays.
            files=Counter(
                name for name in [*names, *mapped] if name.startswith(temporary) and not name.startswith(sys.prefix)
            ),
            others=sum(not name.startswith(temporary) for name in names),
        )

    def excess(self, before: Census) -> list[str]:
        """What is here that was not there `before`."""
        found = [f"thread {thread.name}" for thread in self.threads - before.threads]
        # A browser that is kept for several tests starts processes when it likes; they are its own.
        news = self.children.keys() - before.children.keys()
        found += [name for name in news if not self.children[name] & before.children.keys()]
        found += [f"open or mapped: {name}" for name in (self.files - before.files)]
        if self.others > before.others + _POOLED:
            found.append(f"{self.others - before.others} more descriptors")
        return found


def wait_for_none(before: Census, deadline: float = 10.0) -> list[str]:
    """What is still left once everything that is on its way out has had time to go."""
    end = time.monotonic() + deadline
    while True:
        gc.collect()
        left = Census.take().excess(before)
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.05)


@contextlib.contextmanager
def raised_from_workers(kind: type[Exception], match: str) -> Iterator[None]:
    """The error that a `DataLoader` with workers raises, and then lets go of.

    PyTorch raises it in a frame that holds it, so that error and iterator are freed by the garbage collector. That ends
    the queues first, by which the iterator tells its workers to end: it waits 5 seconds for each, and terminates it.
    """
    try:
        yield
    except kind as error:  # `pytest.raises` would hold its frames, and be held by one of them
        assert re.search(match, str(error)), error
        error.__traceback__ = None
    else:
        pytest.fail(f"no {kind.__name__} was raised")
