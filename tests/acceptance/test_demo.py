"""The demo, from its first line to its last."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_demo_trains_is_killed_resumes_and_reports(warehouse_dir: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), str(warehouse_dir / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "resumed at step 300" in done.stdout
    twice = re.search(r"(\d+) of (\d+) losses are equal", done.stdout)
    assert twice and twice[1] == twice[2] and int(twice[1]) >= 23  # more, if it prints on before the kill
    assert (warehouse_dir / "demo" / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert not done.stderr, done.stderr
