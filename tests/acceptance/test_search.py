"""The example of a search: variants of a network, two workers, a ranking by query."""

from __future__ import annotations

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
def test_twelve_variants_and_a_ranking(warehouse_dir: Path) -> None:
    lines = example(warehouse_dir)
    assert len(lines) == 12 and float(lines[0].split()[2]) > 0.93 > float(lines[-1].split()[2])
    with TensorDB(warehouse_dir / "warehouse") as db:
        jobs = db.jobs.find({"tags": "grid"}).all()
        assert {job["status"] for job in jobs} == {"done"} and len({job["worker"] for job in jobs}) == 2
        assert "step 300" in [row["text"] for row in jobs[0].output][-1]


def test_points_drawn_at_random(warehouse_dir: Path) -> None:
    assert len(example(warehouse_dir, "--random", "2")) == 2
    with TensorDB(warehouse_dir / "warehouse") as db:
        first, second = db.jobs.find({"tags": "random"}).all()
        assert all(first["args"][name] != second["args"][name] for name in ("lr", "momentum"))
        assert {first["status"], second["status"]} == {"done"}
