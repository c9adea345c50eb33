"""A process's share in the server of a folder."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from pathlib import Path

from tensordb_data.common.system import file_locks
from tensordb_data.embedded.paths import Layout, locate, socket_uri
from tensordb_data.embedded.start import bring_up, credentials, wait_for_moved
from tensordb_data.errors import EmbeddedServerError, TensorDBError

PATIENCE = 8.0  # seconds between attempts to start a server that does not start


def join(folder: str | os.PathLike[str]) -> Session:
    """Join the server of a warehouse folder, starting it if it does not run.

    Args:
        folder: The warehouse folder; made when it does not exist.

    Returns:
        A session; the server runs at least until it is closed or this process ends.

    Raises:
        EmbeddedServerError: No mongod, or it cannot serve this folder; the message says what to do.
    """
    layout = locate(folder)
    layout.prepare()
    return Session(layout)


class Session:
    """A share in the running server of a folder; made by `join`, or with the mongod that is to be started.

    A thread of the session watches the supervisor. When that dies, and mongod with it, the thread starts the server
    again, at the same address, while operations of this process wait for it.

    A forked child has no part in it: `close` does nothing there, and the child joins for itself. Nothing needs to be
    done when the process exits: the kernel gives its share back.
    """

    def __init__(self, layout: Layout, mongod: Path | None = None) -> None:
        self._layout, self._mongod = layout, mongod
        self._pid = os.getpid()
        self._client = -1
        self._alive = -1
        self._stop = threading.Event()
        self._error: TensorDBError | None = None
        self._wake_reader, self._wake_writer = file_locks.pipe()
        try:
            self._uri = self._enter()
        except BaseException:
            self._close_all()
            raise
        self._guardian = threading.Thread(target=self._guard, name="tensordb-guardian", daemon=True)
        self._guardian.start()

    @property
    def uri(self) -> str:
        """The address for `pymongo.MongoClient`. It may hold a password: do not print it."""
        return self._uri

    @property
    def folder(self) -> Path:
        """The warehouse folder, as a real path."""
        return self._layout.folder

    @property
    def error(self) -> TensorDBError | None:
        """Why the server, once lost, could not be started again; None while all is well."""
        return self._error

    def __repr__(self) -> str:
        return f"Session({str(self.folder)!r})"

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the server, which ends when the last session has left. Does nothing in a forked child, nor twice."""
        if os.getpid() != self._pid or self._stop.is_set():
            return
        self._stop.set()
        os.write(self._wake_writer, b"x")
        if self._guardian is not threading.current_thread():
            self._guardian.join()
        self._close_all()

    def _close_all(self) -> None:
        for fd in (self._client, self._alive, self._wake_reader, self._wake_writer):
            if fd >= 0:
                file_locks.close_fd(fd)
        self._client = self._alive = self._wake_reader = self._wake_writer = -1

    def _enter(self) -> str:
        """Join under start.lock, so that nobody starts or stops the server meanwhile. Returns the address."""
        layout = self._layout
        with file_locks.exclusive(layout.start_lock):
            if self._client >= 0 and not file_locks.is_of(self._client, layout.server_lock):  # the folder was made anew
                file_locks.close_fd(self._client)
                self._client = -1
            if self._client < 0:
                wait_for_moved(layout)
                self._client = file_locks.acquire(layout.server_lock, file_locks.LOCK_SH)
            while True:
                state = bring_up(layout, self._mongod)
                run = str(state["run"])
                with contextlib.suppress(OSError):  # it has just died: look again
                    alive = file_locks.open_fd(Path(run) / "alive", os.O_RDONLY | os.O_NONBLOCK)
                    if file_locks.is_held(layout.supervisor_lock):
                        break
                    file_locks.close_fd(alive)
            if self._alive >= 0:
                file_locks.close_fd(self._alive)
            self._alive = alive
            return socket_uri(layout.socket(run), credentials(layout, state))

    def _guard(self) -> None:
        """Wait until the pipe `alive` tells that the supervisor has died, then start the server again."""
        patience = 1.0
        while not self._stop.is_set():
            poll = select.poll()
            poll.register(self._wake_reader, select.POLLIN)
            if self._error is None:
                poll.register(self._alive, 0)  # hang-up is always reported
            poll.poll(None if self._error is None else patience * 1000)
            if self._stop.is_set():
                return
            try:
                self._uri = self._enter()
                self._error, patience = None, 1.0
            except TensorDBError as error:
                self._error, patience = error, min(PATIENCE, patience * 2)
            except Exception as error:  # the thread must live: memory may be short for a moment
                self._error = EmbeddedServerError(f"cannot start the server of {self.folder} again: {error}")
                patience = min(PATIENCE, patience * 2)
