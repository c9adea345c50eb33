"""A test that hangs ends its worker, and the report of it says where it stood."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = """
import ctypes, subprocess, sys, threading
from types import SimpleNamespace

def test_that_waits_for_ever(request):
    print("so far, so good")
    with subprocess.Popen([sys.executable, "-c", "print(1, flush=True); input()"], stdin=-1, stdout=-1) as child:
        child.stdout.readline()
        hook = request.config.hook
        hook.pytest_timeout_cancel_timer(item=request.node)
        hook.pytest_timeout_set_timer(item=request.node, settings=SimpleNamespace(timeout=0.5))
        threading.Event().wait()

def test_that_reads_at_zero():
    ctypes.string_at(0)
"""


def test_what_ended_a_worker_is_in_the_report(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_configure\n")
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-o", "timeout=120", "-o", "timeout_method=thread"]
    command += ["-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.count("\nworker 'gw") == 2, done.stdout + done.stderr
    for words in ("test_that_waits_for_ever took longer than 0.5 s", "threading.Event().wait()", "so far, so good",
                  "; input()", "Segmentation fault", "in test_that_reads_at_zero"):  # fmt: skip
        assert words in done.stdout, done.stdout
