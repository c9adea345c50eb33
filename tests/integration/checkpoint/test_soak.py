"""The kills of `make soak`, a few of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("script", "kills"), [("soak.py", 10), ("soak_samples.py", 9)])
def test_killed_in_every_phase(script, kills):
    command = [sys.executable, str(TESTS / "long" / script), "--kills", str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=230)
    assert done.returncode == 0, done.stdout + done.stderr
