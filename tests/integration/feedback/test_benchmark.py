"""The benchmark of feedback runs, as small as it goes. Its figures mean nothing here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "feedback" / "calls.py"


def test_the_benchmark_runs() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--samples", "300", "--calls", "5"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["numpy"]["numbers"] == 5 * 256
