"""The chaos of `make chaos`, a short one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "long" / "chaos.py"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_job_is_accounted_for():
    command = [sys.executable, str(SCRIPT), "--seconds", "10", "--workers", "2", "--restarts", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=390)
    assert done.returncode == 0, done.stdout + done.stderr
