"""What counts as left behind by a test."""

from __future__ import annotations

import subprocess
import sys

from tests.leaks import Census

PARENT = """
import subprocess, sys
sys.stdin.readline()
child = subprocess.Popen(["sleep", "60"])
print("there is one", flush=True)
sys.stdin.readline()
child.kill()
child.wait()
"""


def test_a_process_belongs_to_whom_was_there_before() -> None:
    before = Census.take()
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        assert len(Census.take().excess(before)) == 1
        between = Census.take()
        print(file=parent.stdin, flush=True)
        parent.stdout.readline()
        now = Census.take()
        assert len(now.excess(before)) == 2 and now.excess(between) == []
        print(file=parent.stdin, flush=True)
    assert Census.take().excess(before) == []
