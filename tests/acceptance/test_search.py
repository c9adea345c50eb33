"""The example of a search: 12 variants, two workers, a ranking by query."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tensordb_data import TensorDB

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_twelve_variants_and_a_ranking(warehouse_dir: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "search.py"), str(warehouse_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 12 and lines[0].startswith(" 1. acc")
    accuracies = [float(line.split()[2]) for line in lines]
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[0] > 0.93 > accuracies[-1]
    with TensorDB(warehouse_dir / "warehouse") as db:
        jobs = db.jobs.find({"tags": "search"}).all()
        assert {job["status"] for job in jobs} == {"done"} and len({job["worker"] for job in jobs}) == 2
        assert "step 300" in [row["text"] for row in jobs[0].output][-1]
