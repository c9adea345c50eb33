"""Signals to a supervisor that is on its way out, or is none of ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tensordb_data.embedded.control import _signal
from tensordb_data.errors import EmbeddedServerError


class Named:
    """As much of a layout as a signal needs."""

    folder = Path("w")

    def __init__(self, state: dict[str, Any] | None) -> None:
        self.state = lambda: state


def test_a_supervisor_that_is_ending_needs_no_signal() -> None:
    _signal(Named(None), signal.SIGTERM)  # type: ignore[arg-type]
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and not yet forgotten
    _signal(Named({"supervisor": child.pid}), signal.SIGTERM)  # type: ignore[arg-type]
    child.wait()
    _signal(Named({"supervisor": child.pid}), signal.SIGTERM)  # type: ignore[arg-type]


def test_a_process_that_is_no_supervisor_is_left_alone() -> None:
    with pytest.raises(EmbeddedServerError, match="another machine or container"):
        _signal(Named({"supervisor": os.getpid()}), signal.SIGTERM)  # type: ignore[arg-type]
