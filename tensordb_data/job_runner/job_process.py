"""The process of a job, as its worker sees it: the worker starts, reads, pauses and ends it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tensordb_data.api.job import Job
from tensordb_data.common.system.modules import optional
from tensordb_data.errors import StorageError
from tensordb_data.job_runner.handoff import EXITED

_fcntl, _termios = optional("fcntl"), optional("termios")

MARK = "TENSORDB_JOB"
_LINE = 8_000  # characters of a line; longer ones are split
_CHUNK = 1 << 16  # bytes that are read at once
_BURST = 20_000  # lines until the log has to have caught up
_LAST = 20  # lines that are shown when a job dies without a report


class JobProcess:
    """A running job.

    Args:
        job: The job, claimed.
        ticket: What `handoff.job_ticket` returns.
        devices: The GPUs that it is to see; those that this process sees without any.
    """

    def __init__(self, job: Job, ticket: dict[str, Any], devices: Sequence[str] = ()) -> None:
        self._job = job
        self._mark = ticket["token"]
        self._last: deque[str] = deque(maxlen=_LAST)
        self.exited = False
        """Whether it has ended itself by `sys.exit(0)`, known after `close`."""
        # Only this process has the writing end. When it ends, in whatever way, the kernel closes that end and kills the
        # job.
        hear, self._alive = os.pipe()
        own = {MARK: self._mark, "PYTHONUNBUFFERED": "1"}
        if devices:
            own["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tensordb_data.job_runner.job_main", str(hear)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
                pass_fds=[hear], env={**os.environ, **own},
            )  # fmt: skip
        finally:
            os.close(hear)
        self._ended = os.pidfd_open(self._process.pid)
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(ticket).encode())
            self._process.stdin.close()
        self._reader = threading.Thread(target=self._read, name="tensordb-job-output", daemon=True)
        self._reader.start()

    def ends_within(self, seconds: float) -> bool:
        """Waits for so long; whether it has ended."""
        return bool(select.select([self._ended], [], [], max(0.0, seconds))[0])

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the job and what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def close(self) -> str:
        """Ends what is left of it, and reads its output so far; returns how it ended, in words."""
        self.signal(signal.SIGKILL)  # before it is reaped: its number is still its own
        for pid in self._strays():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        status = self._process.wait()
        self._reader.join()
        os.close(self._ended)
        os.close(self._alive)
        self.exited = status == EXITED
        if status < 0:
            how = f"was ended by {signal.Signals(-status).name}"
        else:
            how = f"ended with exit status {status}"
        text = "\n".join(self._last)
        return f"the process {how} without a result" + (f"; its last output:\n{text}" if text else "")

    def _strays(self) -> list[int]:
        """Processes of the job that have left its process group: they carry its mark in their environment."""
        found = []
        mark = f"{MARK}={self._mark}".encode()
        for entry in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in entry.read_bytes().split(b"\0"):
                    found.append(int(entry.parent.name))
        return found

    def _read(self) -> None:
        assert self._process.stdout is not None
        hide = self._job.db.warehouse.address.redact
        log = self._job.db.logs.run(self._job.run, tags=self._job.tags)
        number = 0
        with self._process.stdout as output:
            for line in _lines(self._written(output.fileno())):
                number += 1
                text = hide(line.decode(errors="replace").rstrip("\r\n"))
                self._last.append(text)
                log.write(number, kind="output", text=text, attempt=self._job["attempts"])
                if number % _BURST == 0:
                    with contextlib.suppress(StorageError):  # the server is away: the log keeps what it can
                        log.flush()
        with contextlib.suppress(StorageError):
            log.close()

    def _written(self, output: int) -> Iterator[bytes]:
        """What the job writes, until it has ended: a process that it has left behind may hold its output open."""
        while True:
            ready, _, _ = select.select([output, self._ended], [], [])
            if self._ended in ready:
                left = int.from_bytes(_fcntl.ioctl(output, _termios.FIONREAD, bytes(4)), sys.byteorder)
                yield os.read(output, left) if left else b""
                return
            if not (chunk := os.read(output, _CHUNK)):
                return
            yield chunk


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a text, those that are too long in pieces."""
    rest = b""
    for chunk in chunks:
        *ended, rest = (rest + chunk).split(b"\n")
        for line in ended:
            yield from _pieces(line)
        *long, rest = _pieces(rest)
        yield from long
    if rest:
        yield rest


def _pieces(line: bytes) -> Iterator[bytes]:
    yield from (line[start : start + _LINE] for start in range(0, max(1, len(line)), _LINE))
