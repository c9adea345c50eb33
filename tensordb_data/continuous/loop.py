"""The loop of evaluator and deployer: look at a query, act, and sleep until something has changed."""

from __future__ import annotations

import abc
import contextlib
import logging
import queue
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from tensordb_data.mongo.errors import first_line, is_history_lost, is_transient

if TYPE_CHECKING:
    from tensordb_data.api.selection import Selection
    from tensordb_data.api.watch import Watch

log = logging.getLogger("tensordb.continuous")

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOOK = 1.0  # seconds between two looks at whether to stop; the server itself is asked twice a second
_LONGEST = 10.0  # seconds between two attempts at a warehouse that is away


class Stoppable:
    """Something that runs until it is asked to stop, by a method or by SIGTERM or Ctrl-C. What is begun is ended."""

    def __init__(self) -> None:
        self._stopping = False
        # put() of a SimpleQueue is reentrant: the one way to wake a thread that is safe within a handler
        self._mail: queue.SimpleQueue[None] = queue.SimpleQueue()

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._stopping

    def stop(self) -> None:
        """Ask the loop to stop. It finishes what it is doing, and begins nothing new.

        Returns at once. May be called from any thread.
        """
        self._stopping = True
        self._mail.put(None)

    def _sleep(self, seconds: float) -> None:
        """Sleeps, or until it is asked to stop."""
        if not self._stopping:
            with contextlib.suppress(queue.Empty):
                self._mail.get(timeout=max(0.0, seconds))

    @contextlib.contextmanager
    def _signals(self, numbers: Sequence[int] = SIGNALS) -> Iterator[None]:
        """Handle signals during the block: the first of `numbers` asks to stop, a second one has its usual effect.

        Outside the main thread, where Python allows no handlers, and where the application has handlers of its own,
        they are left alone.
        """
        self._stopping = False
        self._mail = queue.SimpleQueue()
        previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    previous[number] = signal.signal(number, lambda n, frame: self._asked(n, frame, previous))
        try:
            yield
        finally:
            for taken, handler in previous.items():
                signal.signal(taken, handler)

    def _asked(self, number: int, frame: FrameType | None, previous: dict[int, Any]) -> None:
        signal.signal(number, previous[number])
        self.stop()


class Loop(Stoppable, abc.ABC):
    """Looks at a query, acts, and waits until an entity that matches has come or changed. It has no memory that
    matters: whatever dies, it or the database, the next look finds what is to be done.
    """

    @abc.abstractmethod
    def once(self) -> float | None:
        """Does what there is to do now.

        Returns:
            Seconds after which to look again even without news, None for never.
        """

    @abc.abstractmethod
    def _watched(self) -> Selection[Any]:
        """The entities whose coming or changing is news."""

    def run(self) -> None:
        """Runs until `stop()`, SIGTERM or Ctrl-C. While the database is away, it waits.

        Raises:
            UnsupportedError: The server has no change streams (mongomock); call `once()` yourself.
        """
        failures = 0
        with self._signals():
            while not self._stopping:
                try:
                    with self._watched().watch() as news:  # before the look: nothing falls in between
                        while not self._stopping:
                            again = self.once()
                            failures = 0
                            self._await(news, again)
                except Exception as error:
                    if is_history_lost(error):
                        continue  # what was missed is there to be seen
                    if not is_transient(error):
                        raise
                    failures += 1
                    if failures == 1:
                        log.warning("the database is away, waiting for it: %s", first_line(error))
                    self._sleep(min(_LONGEST, 0.05 * 2**failures))

    def _await(self, news: Watch[Any], seconds: float | None) -> None:
        until = None if seconds is None else time.monotonic() + seconds
        while not self._stopping:
            left = _LOOK if until is None else min(_LOOK, until - time.monotonic())
            if left <= 0:
                return
            if news.wait(left):
                news.skip()
                return
