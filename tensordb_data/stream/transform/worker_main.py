"""Worker: what runs in a process that transforms the samples of a stream."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from multiprocessing.util import register_after_fork
from typing import Any

from tensordb_data.common.import_paths2 import resolve
from tensordb_data.common.parent_process import exit_with
from tensordb_data.errors import QueryError, SampleError
from tensordb_data.stream.fetch.decode import Column
from tensordb_data.stream.stats import Clock
from tensordb_data.stream.transform.function import Transform
from tensordb_data.stream.transform.shared_memory import Box, plan


class WorkerProcess(ForkServerProcess):
    """A process that never hears of Ctrl-C: the stream does, and ends it."""


def _settle_interrupts(_: object) -> None:
    """In a process of the forkserver, which starts with SIGINT blocked if a stream has started the forkserver."""
    process = multiprocessing.current_process()
    if isinstance(process, WorkerProcess):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if isinstance(process, ForkServerProcess):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


# Called in each new process before its own code runs. The forkserver has imported this file.
register_after_fork(sys.modules[__name__], _settle_interrupts)


def work(connection: Connection, path: str, parent: int) -> None:
    """Answer requests until the stream ends, or its process does.

    Args:
        connection: to the stream, which sends two boxes first: of requests, and of answers.
        path: of the transform.
        parent: process id of the stream.
    """
    # Done before, but where a forkserver runs that others have started before any stream had workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_with(parent)
    try:
        requests, answers = Box.receive(connection), Box.receive(connection)
        try:
            transform = Transform(resolve(path))
            _one_thread()
        except Exception as error:  # whatever a module does while it is imported
            text = str(error) if isinstance(error, QueryError) else f"{type(error).__name__}: {error}"
            connection.send_bytes(answers.pack({"refused": text, "trace": traceback.format_exc()}))
            return
        connection.send_bytes(answers.pack({}))
        while True:
            request = requests.unpack(connection.recv_bytes())
            connection.send_bytes(_answer(transform, request, answers))
    except (EOFError, ConnectionError):
        return


def _answer(transform: Transform, request: dict[str, Any], answers: Box) -> bytes:
    clock = Clock()
    names = request["names"]
    try:
        made = transform.columns(
            request["columns"], len(names), request["keys"], request["stack"], names.__getitem__, clock
        )
    except (SampleError, QueryError) as error:
        return answers.pack(_failure(error))
    try:
        return answers.pack({"columns": made, "work": clock.work, "wait": clock.wait})
    except TypeError:
        return answers.pack(_failure(_misfit(made, names)))


def _failure(error: Exception) -> dict[str, Any]:
    kind = "sample" if isinstance(error, SampleError) else "query"
    trace = "".join(traceback.format_exception(error))
    return {"failed": kind, "text": str(error), "trace": trace}


def _misfit(made: dict[str, Column], names: list[str]) -> SampleError:
    """The error of the first value that cannot be sent."""
    for row, name in enumerate(names):
        for field, column in made.items():
            try:
                plan(column[row], [])
            except TypeError as error:
                return SampleError(
                    f"{name}, field {field!r}: what a transform returns in a worker process is arrays, numbers, text,"
                    f" bytes, and lists, tuples and dicts of them. Found: {error}"
                )
    raise AssertionError("every value can be sent")


def _one_thread() -> None:
    """As many processes as there are cores, each with as many threads, would be in each other's way."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
    if (cv2 := sys.modules.get("cv2")) is not None:
        cv2.setNumThreads(1)
