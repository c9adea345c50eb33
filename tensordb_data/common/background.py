"""A buffer that a thread of its own empties."""

from __future__ import annotations

import abc
import atexit
import os
import threading
import weakref
from collections.abc import Callable

from tensordb_data.common.interruptible import InterruptibleCondition


class BackgroundWorker(abc.ABC):
    """The base of a buffer with a thread. The thread starts with the first work, and ends after `retire`.

    At exit of the program, `close` is called if the program has not called it. It is called before objects that were
    made earlier close, such as the connection to the server.
    """

    _thread_name = "tensordb-background"

    def __init__(self) -> None:
        self._changed = InterruptibleCondition()
        self._alone = threading.Lock()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._at_exit: Callable[[], None] | None = None
        self._pid = os.getpid()

    @abc.abstractmethod
    def _run(self) -> None:
        """Work in the thread, until `_closed` is true and nothing is left."""

    @abc.abstractmethod
    def close(self) -> None:
        """Wait until all work is done, and end the thread."""

    def retire(self) -> None:
        """Accept no more work. The thread finishes its work, and ends. This does not wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def _is_forked(self) -> bool:
        """Whether this is a forked child, where neither the thread nor the buffer is its own."""
        return os.getpid() != self._pid

    def _wake(self) -> None:
        """Start the thread, or wake it. The caller holds the lock, and adds the work after this.

        An interrupt may come between making a thread and its start, so one that does not live is replaced. And it may
        come just as the thread begins: then there are two, and one works after the other.
        """
        if self._at_exit is None:
            self._at_exit = _close_at_exit(self)
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run_alone, name=self._thread_name, daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run_alone(self) -> None:
        with self._alone:
            self._run()

    def _end(self) -> None:
        """Retire, and wait for the thread."""
        self._changed.recover()
        self.retire()
        if self._thread is not None and self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        if self._at_exit is not None:
            atexit.unregister(self._at_exit)
            self._at_exit = None

    def _close_at_exit(self) -> None:
        self.close()


class Outbox(BackgroundWorker):
    """The base of a buffer whose thread tries again what has failed."""

    def __init__(self) -> None:
        super().__init__()
        self._hurry = False
        """Whether somebody waits in `_sent_all`."""
        self._failure: Exception | None = None
        """Of the newest attempt; None if it succeeded."""
        self._attempts = 0

    @abc.abstractmethod
    def _empty(self) -> bool:
        """Whether nothing is left to be sent."""

    def _sent_all(self) -> bool:
        """Wait until nothing is left, or an attempt has failed that began after this; whether nothing is left."""
        if self._is_forked:
            return True
        self._changed.recover()
        with self._changed:
            if self._empty():
                return True
            self._hurry = True
            self._wake()
            attempts = self._attempts
            self._changed.wait_for(
                lambda: self._empty() or (self._failure is not None and self._attempts > attempts + 1)
            )
            self._hurry = False
            return self._empty()


def _close_at_exit(worker: BackgroundWorker) -> Callable[[], None]:
    reference = weakref.ref(worker)

    def at_exit() -> None:
        if (found := reference()) is not None:
            found._close_at_exit()

    atexit.register(at_exit)
    return at_exit
