"""A program that is killed at a chosen one of the commands that it sends to the server."""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path

from tests import warm

_BEFORE = """
import os, signal, sys
from pymongo import monitoring
from tensordb_data import TensorDB

class Killer(monitoring.CommandListener):
    count, point = 0, None
    def started(self, event):
        Killer.count += 1
        if Killer.count == Killer.point:
            os.kill(os.getpid(), signal.SIGKILL)
    def succeeded(self, event): pass
    def failed(self, event): pass

monitoring.register(Killer())
uri, blobs, point, *given = sys.argv[1:]
db = TensorDB(uri, blobs=blobs)
Killer.count, Killer.point = 0, int(point) or None
"""
_AFTER = """
print(Killer.count)
os._exit(0)
"""


def run(body: str, uri: str, folder: Path, point: int, *given: str) -> int:
    """Run a program.

    Args:
        body: What it does with `db` and the texts `given`.
        uri: The address of its warehouse.
        folder: The folder that its blobs are in.
        point: At which command it is killed; 0 for none. It may send fewer.
        given: Texts.

    Returns:
        How many commands it has sent; 0 if it was killed.
    """
    command = [sys.executable, "-c", _BEFORE + body + _AFTER, uri, str(folder / "blobs"), str(point), *given]
    done = warm.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=60)
    assert done.returncode in ((0, -signal.SIGKILL) if point else (0,)), done.stderr
    return int(done.stdout or 0)


def some_points(count: int, seed: str, most: int) -> list[int]:
    """At which of so many commands a program is killed: at a few of chance, with MATRICES=all at each."""
    every = range(1, count + 1)
    return list(every) if os.environ.get("MATRICES") == "all" else random.Random(seed).sample(every, most)
