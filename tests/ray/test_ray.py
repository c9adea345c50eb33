"""Ray: all cases in one process and on one cluster of two cores, which takes seconds to start and ends with them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

NO_RAY = "no Ray: tensordb_data.ray was not tried; pip install 'tensordb-data[ray]'"
CASES = Path(__file__).with_name("cases.py")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, since there are sockets below it."""
    found = Path(tempfile.mkdtemp(prefix="tdbray"))
    yield found
    shutil.rmtree(found, ignore_errors=True)


def processes(folder: Path) -> list[psutil.Process]:
    """Those of a cluster: all of them name its folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        named = [*(process.info["cmdline"] or ()), *(process.info["environ"] or {}).values()]
        if process.pid != os.getpid() and any(str(folder) in text for text in named):
            found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason=NO_RAY)
@pytest.mark.timeout(400)
def test_all_cases_on_one_cluster(folder: Path) -> None:
    env = {**os.environ, "TDB_RAY_FOLDER": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(CASES)]
    started = subprocess.Popen(
        command, env=env, cwd=CASES.parents[2], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        output, _ = started.communicate(timeout=350)
    finally:
        for process in processes(folder) if started.poll() is None else ():
            process.send_signal(signal.SIGKILL)
    assert started.returncode == 0, output[-20_000:]
    _, left = psutil.wait_procs(processes(folder), timeout=60)
    assert not left, left


def test_the_core_does_not_import_ray() -> None:
    code = "import tensordb_data, sys; import tensordb_data.ray; sys.exit('ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
