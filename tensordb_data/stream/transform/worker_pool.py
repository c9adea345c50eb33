"""WorkerPool: runs the transform of a stream in processes, for Python code, which only one thread at a time can run."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from tensordb_data.common.interruptible import InterruptibleCondition
from tensordb_data.errors import QueryError, SampleError, WorkerError
from tensordb_data.stream.fetch.decode import Column, Values
from tensordb_data.stream.stats import Clock
from tensordb_data.stream.transform.collate import Name, materialize
from tensordb_data.stream.transform.libraries.library import Targets
from tensordb_data.stream.transform.returned import FieldTypes
from tensordb_data.stream.transform.shared_memory import SharedBuffer
from tensordb_data.stream.transform.worker_main import WorkerProcess, work

_GRACE = 2.0  # seconds that an idle process has to end by itself


class _Remote(Exception):
    """The traceback of an error in another process."""

    def __str__(self) -> str:
        return f"in a worker process:\n{self.args[0]}"


class _WorkerHandle:
    """A worker process. It shares two buffers with this process: one for requests, and one for answers."""

    def __init__(self, path: str) -> None:
        # Not a fork: locks, threads and connections of this process would be broken in the worker.
        self._connection, theirs = multiprocessing.get_context("forkserver").Pipe()
        self.process = WorkerProcess(target=work, args=(theirs, path, os.getpid()), daemon=True)
        self._requests, self._answers = SharedBuffer.new(), SharedBuffer.new()
        self._path, self._ready = path, False
        try:
            self._start(theirs)
            for buffer in (self._requests, self._answers):
                buffer.send(self._connection, self.process.pid or 0)
        except (OSError, EOFError, RuntimeError) as error:
            self.close()
            raise WorkerError(f"no worker process could be started ({error}); {_GUARD}") from error
        except BaseException:  # Ctrl-C
            self.close()
            raise

    def _start(self, theirs: Connection) -> None:
        """Start the process, in another thread, where Ctrl-C raises nothing.

        Ctrl-C in the middle of the start would leave a process that has received half of its arguments.
        """
        failed: list[BaseException] = []

        def start() -> None:
            try:
                with theirs:
                    _start_forkserver(self._path)
                    self.process.start()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=start, name="tensordb-start", daemon=True)
        try:
            thread.start()
            thread.join()
        except BaseException:
            if thread.ident is not None:
                thread.join(_GRACE)  # after that, it can only be waiting for the forkserver
            raise
        if failed:
            raise failed[0]

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            WorkerError: the process ended, or never started.
        """
        if not self._ready:
            refused = self._answer()
            if refused:
                raise WorkerError(
                    f"a worker process cannot use the transform {self._path!r}: {refused['refused']}"
                ) from (_Remote(refused["trace"]))
            self._ready = True
        message = self._requests.write(request)
        with contextlib.suppress(ConnectionError):  # the process has ended, and `_answer` will say so
            self._connection.send_bytes(message)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        # Wait for the end of the process too. A process that was forked meanwhile may hold the other end of the pipe
        # open, so the pipe alone does not tell.
        wait([self._connection, self.process.sentinel])
        try:
            if self._connection.poll():
                return dict(self._answers.read(self._connection.recv_bytes()))
        except (EOFError, ConnectionError):
            pass
        code = self._ended()
        how = f"by signal {-code}" if code is not None and code < 0 else f"with exit status {code}"
        when = "while it transformed a batch" if self._ready else "before it was ready"
        why = "the system kills what takes too much memory" if self._ready else _GUARD
        raise WorkerError(f"worker process {self.process.pid} ended {how} {when}; {why}")

    def _ended(self) -> int | None:
        """How the process has ended. One that does not by itself is killed.

        It may have ended long ago: the forkserver says how, and may take its time.
        """
        self.process.join(_GRACE)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        return self.process.exitcode

    def close(self) -> None:
        """End the process, and wait for that."""
        self._connection.close()
        if self.process.pid is not None:
            self._ended()
            self.process.close()
        self._requests.close()
        self._answers.close()


_GUARD = (
    'a script that uses worker processes has its code behind `if __name__ == "__main__":`, since they import it for its'
    " functions"
)


class WorkerPool:
    """Applies one transform in processes of its own.

    The processes end when the pool is closed or not referred to any more, and when this process ends.

    Args:
        path: import path of the transform.
        count: number of processes.

    Raises:
        QueryError: this process is a worker itself.
        WorkerError: no process can be started.
    """

    def __init__(self, path: str, count: int) -> None:
        if multiprocessing.current_process().daemon:
            raise QueryError(
                "a worker process, such as one of a DataLoader, cannot have workers of its own: make the stream with"
                " workers=0, or the DataLoader with num_workers=0"
            )
        self.pid = os.getpid()
        self._changed = InterruptibleCondition()
        self._types = FieldTypes()
        self._closed, self._why = False, "the worker processes of this stream were ended"
        self._all: list[_WorkerHandle] = []
        try:
            for _ in range(count):
                self._all.append(_WorkerHandle(path))
        finally:
            self._free = list(self._all)
            _open.add(self)
            if len(self._all) < count:
                self.close()

    def columns(
        self,
        values: Mapping[str, Values],
        m: int,
        keys: Sequence[int],
        targets: Targets,
        stack: bool,
        name: Name,
        clock: Clock,
    ) -> dict[str, Column]:
        """See `Transform.columns`. It waits until a process is free. Several threads may call it.

        Raises:
            SampleError: a sample cannot be decoded or transformed, or the transform returns what it may not.
            WorkerError: a process ended.
        """
        with clock("decode"):
            columns = materialize(values, m, stack=True)
            request = {
                "columns": columns,
                "keys": list(keys),
                "targets": dict(targets),
                "stack": stack,
                "names": [name(row) for row in range(m)],
            }
        worker = self._take_free()
        try:
            answer = worker.ask(request)
        except WorkerError as error:
            with self._changed:
                self._why = self._why if self._closed else str(error)
                self._closed = True  # the threads that wait will raise too
            raise
        finally:
            with self._changed:
                self._free.append(worker)
                self._changed.notify_all()
        if "failed" in answer:
            kind = SampleError if answer["failed"] == "sample" else QueryError
            raise kind(answer["text"]) from _Remote(answer["trace"])
        for stage in answer["work"]:
            clock.add("transform", answer["work"][stage], answer["wait"][stage])
        made: dict[str, Column] = answer["columns"]
        self._types.check_columns(made, name)
        return made

    def _take_free(self) -> _WorkerHandle:
        with self._changed:
            while not (self._free or self._closed):
                self._changed.wait()
            if self._closed:
                raise WorkerError(self._why)
            return self._free.pop()

    def close(self) -> None:
        """End the processes. What they are working on is lost."""
        self._changed.recover()
        with self._changed:
            self._closed = True
            for worker in self._all:
                if worker not in self._free:
                    worker.process.kill()
            while len(self._free) < len(self._all):
                self._changed.wait()
            workers, self._all, self._free = self._all, [], []
            self._changed.notify_all()
        for worker in workers:
            worker.close()


_open: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


def _close_at_exit() -> None:
    for workers in list(_open):
        if workers.pid == os.getpid():  # the workers of the parent are not those of a forked child
            workers.close()


# When the interpreter ends, it first waits for the threads of streams and executors, and calls the functions of
# `atexit` after that. But such a thread may wait for a worker that is stuck. The functions of this list are called the
# last one first: this one before those that wait, of modules that were imported earlier. The list has no public name.
threading._register_atexit(_close_at_exit)  # type: ignore[attr-defined]


def _start_forkserver(path: str) -> None:
    """Start the forkserver, if it does not run yet. It imports what each worker needs, so that it is imported once.

    Ctrl-C in a terminal reaches the forkserver and the workers too. Before they have come to ignore it, it would end
    them, and each would print a traceback. So the forkserver is started with SIGINT blocked, and its children inherit
    this. `worker_main` unblocks it in each of them.

    It must be called in a thread of its own, since it blocks SIGINT there.
    """
    server: Any = forkserver._forkserver
    large = [name for name in ("torch", "torchvision", "kornia", "cv2", "albumentations") if name in sys.modules]
    wanted = [*server._preload_modules, "tensordb_data.stream.transform.worker_main", path.partition(":")[0], *large]
    multiprocessing.set_forkserver_preload(list(dict.fromkeys(wanted)))
    resource_tracker.ensure_running()  # it blocks SIGINT while it starts, and unblocks it here
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    forkserver.ensure_running()
