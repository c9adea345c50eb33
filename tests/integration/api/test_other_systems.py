"""macOS and Windows as clients of a server, as far as Linux can play them: without what it alone has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("other_system.py")


def test_a_client_works_without_what_linux_alone_has(mongo_uri: str, warehouse_dir: Path) -> None:
    command = [sys.executable, "-W", "error", str(PROGRAM), mongo_uri, str(warehouse_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "the servers of warehouse folders run on Linux only, and this is win32: connect to a server by its address"
        " (mongodb://…), which may run anywhere",
        "the servers of warehouse folders run on Linux only, and this is win32: connect to a server by its address"
        " (mongodb://…), which may run anywhere",
        "workers run on Linux only, and this is win32: run them on a Linux machine that reaches the same warehouse",
        "`workers` are processes that a forkserver starts, and this system (win32) has none: use workers=0, which"
        " transforms in threads. Found: workers=2",
    ]
