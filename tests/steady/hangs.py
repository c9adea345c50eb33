"""What a worker of pytest-xdist was doing when a test hung, or crashed it, becomes part of the report.

Left alone, pytest-timeout writes the stacks of a worker to where nobody reads them, and xdist only says that the worker
has crashed.
"""

from __future__ import annotations

import faulthandler
import os
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from _pytest._io import TerminalWriter
from pytest_timeout import dump_stacks


class Reported:
    """In the process that starts the workers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput["last_words"] = str(self._folder / node.gateway.id)

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, report: Any) -> None:
        """Add to the report of a test that ended its worker what the worker has left."""
        words = Path(report.node.workerinput["last_words"])
        if words.exists():
            report.longrepr = f"{report.longrepr}\n\n{words.read_text(errors='replace')}"


class LastWords:
    """In a worker: a test that takes longer than it may is told of, and ends the worker. Segmentation faults, too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w", buffering=1)
        self._timer: threading.Timer | None = None
        faulthandler.enable(self._file)

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Any) -> bool:
        self._timer = threading.Timer(settings.timeout, self._end, (item, settings.timeout))
        self._timer.name, self._timer.daemon = f"limit of {item.nodeid}", True
        self._timer.start()
        return True

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_timeout_cancel_timer(self) -> bool:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
            self._timer = None
        return True

    def _end(self, item: pytest.Item, seconds: float) -> None:
        try:
            # Should this thread wait for ever itself, the stacks alone are told.
            faulthandler.dump_traceback_later(10, exit=True, file=self._file)
            self._tell(item, seconds)
        finally:
            self._file.flush()
            os._exit(1)

    def _tell(self, item: pytest.Item, seconds: float) -> None:
        """The stacks of all threads, the processes below this one, and what was printed."""
        writer = TerminalWriter(self._file)
        writer.line(f"{item.nodeid} took longer than {seconds:g} s")
        dump_stacks(writer)
        writer.sep("~", "Processes")
        for child in psutil.Process().children(recursive=True):
            try:
                command = " ".join(child.cmdline())[:200]
                writer.line(f"{child.pid} {child.status()}, {child.cpu_times().user:.1f} s of CPU: {command}")
            except psutil.Error as error:
                writer.line(f"{child.pid} {error}")
        capture = item.config.pluginmanager.getplugin("capturemanager")
        capture.suspend_global_capture(item)
        for name, text in zip(("stdout", "stderr"), capture.read_global_capture(), strict=True):
            if text:
                writer.sep("~", f"Captured {name}")
                writer.write(text)
