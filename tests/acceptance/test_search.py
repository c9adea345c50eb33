"""The example of a search: variants of a network, two workers, a ranking by query."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tensordb_data import TensorDB

ROOT = Path(__file__).parents[2]


def example(folder: Path, *more: str) -> list[str]:
    command = [sys.executable, str(ROOT / "examples" / "search.py"), str(folder), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    accuracies = [float(line.split()[2]) for line in lines]
    assert lines[0].startswith(" 1. acc") and accuracies == sorted(accuracies, reverse=True)
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("points", [4, None] if os.environ.get("MATRICES") == "all" else [2])
def test_variants_and_a_ranking(warehouse_dir: Path, points: int | None) -> None:
    """Points drawn at random; the grid of twelve, each in a process that imports torch, with MATRICES=all."""
    lines = example(warehouse_dir, *([] if points is None else ["--random", str(points)]))
    assert len(lines) == (points or 12)
    with TensorDB(warehouse_dir / "warehouse") as db:
        jobs = db.jobs.find({"tags": "search"}).all()
        assert {job["status"] for job in jobs} == {"done"} and len({job["worker"] for job in jobs}) == 2
        assert "step 300" in [row["text"] for row in jobs[0].output][-1]
        if points is None:
            assert float(lines[0].split()[2]) > 0.93 > float(lines[-1].split()[2])
        else:
            assert all(len({job["args"][name] for job in jobs}) == points for name in ("lr", "momentum"))
