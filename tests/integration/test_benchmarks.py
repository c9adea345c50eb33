"""Every benchmark runs, as small as it goes, so that none of them rots. Its figures mean nothing here.

Each runs with MATRICES=all. Otherwise that of the stream does, and the others are imported, all in one process, which
finds what they name at their top and is not there any more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
FILES = sorted(FOLDER.rglob("*.py"))
SCRIPTS = [str(path.relative_to(FOLDER)) for path in FILES if path.read_text().startswith('"""B')]  # B1: ..., B2: ...
ALWAYS = ("B1:",)
ALL = os.environ.get("MATRICES") == "all"
SOME = [script for script in SCRIPTS if (FOLDER / script).read_text().removeprefix('"""').startswith(ALWAYS)]


@pytest.mark.slow
def test_all_are_imported() -> None:
    code = "import runpy, sys\nfor path in sys.argv[1:]:\n    runpy.run_path(path, run_name='imported')"
    search = os.pathsep.join([str(FOLDER), os.environ["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, "-c", code, *(str(FOLDER / script) for script in SCRIPTS)],
        capture_output=True, text=True, timeout=110, env={**os.environ, "PYTHONPATH": search},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(SOME) == len(ALWAYS)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS if ALL else SOME)
def test_runs_and_writes_its_result(script: str, tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / script), "--quick", "--peers", "none", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, env={**os.environ, "COLUMNS": "120"})
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / f"{Path(script).stem}.json").read_text())
    assert result["quick"] is True and result["question"] and result["machine"]["cores"] >= 1
    assert not [name for name, rate in result.get("rates", {}).items() if "missing" in rate], result["rates"]


if ALL:

    @pytest.mark.slow
    def test_the_gpu_benchmark_runs_without_one(tmp_path: Path) -> None:
        command = [sys.executable, str(FOLDER / "gpu_input.py"), "--quick", "--device", "cpu", "--out", str(tmp_path)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=110, env={**os.environ, "COLUMNS": "120"}
        )
        assert done.returncode == 0, done.stdout + done.stderr
        for name in ("gpu_transfer", "gpu_input"):
            result = json.loads((tmp_path / f"{name}.json").read_text())
            assert not [name for name, rate in result["rates"].items() if "missing" in rate], result["rates"]
