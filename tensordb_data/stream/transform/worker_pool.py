"""Workers: processes to which a stream hands its transform, for Python code, of which one thread runs at a time."""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 (makes its entry before ours, see below)
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

from tensordb_data.errors import QueryError, SampleError, WorkerError
from tensordb_data.stream.fetch.decode import Column, Values
from tensordb_data.stream.stats import Clock
from tensordb_data.stream.transform.collate import Name, whole
from tensordb_data.stream.transform.shared_memory import Box
from tensordb_data.stream.transform.worker_main import WorkerProcess, work

_GRACE = 2.0  # seconds that an idle process has to end by itself


class _Remote(Exception):
    """The traceback of an error in another process."""

    def __str__(self) -> str:
        return f"in a worker process:\n{self.args[0]}"


class _Worker:
    """One process. It shares two boxes with this one: of requests, and of answers."""

    def __init__(self, path: str) -> None:
        # Not a fork of this process: what it holds (locks, threads, connections) would be there in a broken state.
        self._connection, theirs = multiprocessing.get_context("forkserver").Pipe()
        self.process = WorkerProcess(target=work, args=(theirs, path, os.getpid()), daemon=True)
        self._requests, self._answers = Box.new(), Box.new()
        self._path, self._ready = path, False
        try:
            self._start(theirs)
            for box in (self._requests, self._answers):
                box.send(self._connection, self.process.pid or 0)
        except (OSError, EOFError, RuntimeError) as error:
            self.close()
            raise WorkerError(f"no worker process could be started ({error}); {_GUARD}") from error
        except BaseException:  # Ctrl-C
            self.close()
            raise

    def _start(self, theirs: Connection) -> None:
        """Start the process, in a thread, for no Ctrl-C is raised there: one in the middle of it would leave a process
        that has been told half of what it is for.
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
                thread.join(_GRACE)  # what it still waits for after that is the answer of the forkserver
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
        plan = self._requests.pack(request)
        with contextlib.suppress(ConnectionError):  # of a process that ended: no answer will come either
            self._connection.send_bytes(plan)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        # A copy of the other end may be left open in a process that was forked meanwhile.
        wait([self._connection, self.process.sentinel])
        try:
            if self._connection.poll():
                return dict(self._answers.unpack(self._connection.recv_bytes()))
        except (EOFError, ConnectionError):
            pass
        self.process.join(_GRACE)
        code = self.process.exitcode
        how = f"by signal {-code}" if code is not None and code < 0 else f"with exit status {code}"
        when = "while it transformed a batch" if self._ready else "before it was ready"
        why = "the system kills what takes too much memory" if self._ready else _GUARD
        raise WorkerError(f"worker process {self.process.pid} ended {how} {when}; {why}")

    def close(self) -> None:
        """End the process, and wait for that."""
        self._connection.close()
        if self.process.pid is not None:
            self.process.join(_GRACE)
            if self.process.is_alive():
                self.process.kill()
            self.process.join()
            self.process.close()
        self._requests.close()
        self._answers.close()


_GUARD = (
    'a script that uses worker processes has its code behind `if __name__ == "__main__":`, since they import it for its'
    " functions"
)


class Workers:
    """Applies one transform in processes of its own, which end with it, with this process, or when it is closed.

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
        self._changed = threading.Condition()
        self._closed, self._why = False, "the worker processes of this stream were ended"
        self._all: list[_Worker] = []
        try:
            for _ in range(count):
                self._all.append(_Worker(path))
        finally:
            self._free = list(self._all)
            _open.add(self)
            if len(self._all) < count:
                self.close()

    def columns(
        self, values: Mapping[str, Values], m: int, keys: Sequence[int], stack: bool, name: Name, clock: Clock
    ) -> dict[str, Column]:
        """See `Transform.columns`. Waits for a process that is free; called from several threads.

        Raises:
            SampleError: a sample cannot be decoded or transformed.
            WorkerError: a process ended.
        """
        with clock("decode"):
            columns = whole(values, m, stack=True)
            request = {"columns": columns, "keys": list(keys), "stack": stack, "names": [name(row) for row in range(m)]}
        worker = self._take()
        try:
            answer = worker.ask(request)
        except WorkerError as error:
            with self._changed:
                self._why = self._why if self._closed else str(error)
                self._closed = True  # for the threads that wait
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
        return dict(answer["columns"])

    def _take(self) -> _Worker:
        with self._changed:
            while not (self._free or self._closed):
                self._changed.wait()
            if self._closed:
                raise WorkerError(self._why)
            return self._free.pop()

    def close(self) -> None:
        """End the processes. Whatever they are at is dropped."""
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


_open: weakref.WeakSet[Workers] = weakref.WeakSet()


def _close_at_exit() -> None:
    for workers in list(_open):
        if workers.pid == os.getpid():  # a forked child has no part in them
            workers.close()


# The interpreter ends by waiting for the threads of all executors, one of which may wait for a worker that is stuck;
# what `atexit` has comes after that. This list, last entry first, comes before, and has no public name.
threading._register_atexit(_close_at_exit)  # type: ignore[attr-defined]


def _start_forkserver(path: str) -> None:
    """In a thread of its own: start the forkserver, if it does not run yet. It imports once what each worker would
    import for itself.

    Ctrl-C of a terminal reaches it and its workers too. It would end them, and print a traceback of each, before they
    have come to where they ignore it. So the forkserver starts with SIGINT blocked, and hands that on to its children,
    until `worker` settles it in each.
    """
    server: Any = forkserver._forkserver
    large = [name for name in ("torch", "cv2", "albumentations") if name in sys.modules]
    wanted = [*server._preload_modules, "tensordb_data.stream.transform.worker_main", path.partition(":")[0], *large]
    multiprocessing.set_forkserver_preload(list(dict.fromkeys(wanted)))
    resource_tracker.ensure_running()  # it shields itself, and unblocks SIGINT here when that is done
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    forkserver.ensure_running()
