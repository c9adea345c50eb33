"""The example of learning that never stops, shortened: all four are killed once, and all are at work again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "continuous" / "run.py"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_four_processes_killed_once_each(warehouse_dir: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(warehouse_dir), "--seconds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=390)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("kill -9") == 4 and "deployed, all four were killed once" in done.stdout
    assert (warehouse_dir / "continuous.png").stat().st_size > 5000
