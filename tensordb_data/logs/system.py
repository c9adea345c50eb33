"""Log what the machine does during a run: processor, memory and GPUs."""

from __future__ import annotations

import sys
import threading
from typing import Any, Protocol

from tensordb_data.errors import MissingExtraError, SchemaError, StorageError

KIND = "system"


class Rows(Protocol):
    """The log that rows are added to."""

    @property
    def last_step(self) -> int:
        """The step that was written last."""
        ...

    def write(self, step: int, kind: str = ..., **values: Any) -> None:
        """Adds a row."""
        ...


class SystemMetrics:
    """Adds a row of kind `"system"` to a log every so many seconds, and one at its end.

    Args:
        log: The log, or a weak proxy of it: a log that nobody holds any more is left alone.
        seconds: Time between two rows.

    Raises:
        MissingExtraError: psutil is not installed.
    """

    def __init__(self, log: Rows, seconds: float) -> None:
        if (
            not isinstance(seconds, (int, float))
            or isinstance(seconds, bool)
            or not 0 < seconds < threading.TIMEOUT_MAX
        ):
            raise SchemaError(f"system= is a number of seconds between two rows, or None; found {seconds!r}")
        try:
            import psutil
        except ImportError:
            raise MissingExtraError("system= needs psutil: pip install 'tensordb-data[logs]'") from None
        self._psutil: Any = psutil
        self._process = psutil.Process()
        self._process.cpu_percent(), psutil.cpu_percent()  # both count from their last call
        self._log = log
        self._seconds = seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tensordb-system", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Writes the last row and ends. Twice is fine."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._thread.join()
            self._write()

    def _run(self) -> None:
        while not self._stopped.wait(self._seconds):
            if not self._write():
                return

    def _write(self) -> bool:
        try:
            self._log.write(self._log.last_step, KIND, **self._values())
        except (ReferenceError, StorageError, self._psutil.Error):
            return False
        return True

    def _values(self) -> dict[str, float]:
        memory = self._psutil.virtual_memory()
        values = {
            "process_cpu_percent": self._process.cpu_percent(),
            "process_memory_bytes": self._process.memory_info().rss,
            "cpu_percent": self._psutil.cpu_percent(),
            "memory_available_bytes": memory.available,
            "memory_percent": memory.percent,
        }
        cuda = getattr(sys.modules.get("torch"), "cuda", None)
        if cuda is not None and cuda.is_available() and cuda.is_initialized():
            for device in range(cuda.device_count()):
                free, total = cuda.mem_get_info(device)
                values[f"gpu{device}_memory_bytes"] = total - free
        return values
