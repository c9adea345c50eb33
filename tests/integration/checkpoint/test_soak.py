"""The kills of `make soak`, a few of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "soak.py"


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_killed_in_every_phase():
    done = subprocess.run([sys.executable, str(SCRIPT), "--kills", "10"], capture_output=True, text=True, timeout=230)
    assert done.returncode == 0, done.stdout + done.stderr
