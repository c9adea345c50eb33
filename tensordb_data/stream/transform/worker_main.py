"""The main function of a worker process, which transforms the samples of a stream."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from multiprocessing.util import register_after_fork
from typing import Any

from tensordb_data.common.import_paths import resolve
from tensordb_data.common.system.parent_process import exit_with
from tensordb_data.errors import QueryError, SampleError
from tensordb_data.stream.stats import Clock
from tensordb_data.stream.transform.function import Transform
from tensordb_data.stream.transform.libraries.choose import library_of
from tensordb_data.stream.transform.shared_memory import SharedBuffer


class WorkerProcess(ForkServerProcess):
    """A process that ignores Ctrl-C. It reaches the stream too, which ends this process."""


def _settle_interrupts(_: object) -> None:
    """Unblock SIGINT, or ignore it, in a process that the forkserver has made.

    If a stream has started the forkserver, its processes begin with SIGINT blocked.
    """
    process = multiprocessing.current_process()
    if isinstance(process, WorkerProcess):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if isinstance(process, ForkServerProcess):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


# It is called in each new process before other code runs, because the forkserver has imported this file.
register_after_fork(sys.modules[__name__], _settle_interrupts)


def work(connection: Connection, path: str, parent: int) -> None:
    """Answer requests until the stream ends, or its process does.

    Args:
        connection: to the stream, which first sends two shared buffers: one for requests, and one for answers.
        path: of the transform.
        parent: process id of the stream.
    """
    # This was done already, unless the forkserver was started by others, before any stream had workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_with(parent)
    try:
        requests, answers = SharedBuffer.receive(connection), SharedBuffer.receive(connection)
        try:
            transform = Transform(library_of(resolve(path)))
            _one_thread()
        except Exception as error:  # a module may raise anything while it is imported
            text = str(error) if isinstance(error, QueryError) else f"{type(error).__name__}: {error}"
            connection.send_bytes(answers.write({"refused": text, "trace": traceback.format_exc()}))
            return
        connection.send_bytes(answers.write({}))
        while True:
            request = requests.read(connection.recv_bytes())
            connection.send_bytes(_answer(transform, request, answers))
    except (EOFError, ConnectionError):
        return


def _answer(transform: Transform, request: dict[str, Any], answers: SharedBuffer) -> bytes:
    clock = Clock()
    names = request["names"]
    try:
        made = transform.columns(
            request["columns"],
            len(names),
            request["keys"],
            request["targets"],
            request["stack"],
            names.__getitem__,
            clock,
        )
    except (SampleError, QueryError) as error:
        return answers.write(_failure(error))
    return answers.write({"columns": made, "work": clock.work, "wait": clock.wait})


def _failure(error: Exception) -> dict[str, Any]:
    kind = "sample" if isinstance(error, SampleError) else "query"
    trace = "".join(traceback.format_exception(error))
    return {"failed": kind, "text": str(error), "trace": trace}


def _one_thread() -> None:
    """Use one thread in this process. With a process for each core, more threads would compete for the cores."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
    if (cv2 := sys.modules.get("cv2")) is not None:
        cv2.setNumThreads(1)
