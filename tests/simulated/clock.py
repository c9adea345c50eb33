"""Virtual time: coroutines that switch wherever code of the product waits for a server, however deep it is called."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet


class Clock:
    """Runs coroutines, one at a time, in the order of virtual time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._hub = getcurrent()
        self._due: list[tuple[float, int, Any]] = []
        self._order = itertools.count()

    def spawn(self, work: Callable[[], None]) -> Any:
        """Begin a coroutine, at the present time."""
        coroutine = greenlet(work, self._hub)
        self._at(self.now, coroutine)
        return coroutine

    def sleep(self, seconds: float) -> None:
        """Let virtual time pass for the coroutine that calls."""
        self._at(self.now + seconds, getcurrent())
        self._hub.switch()

    def result(self, future: Future[Any]) -> Any:
        """What a future brings; the coroutine that calls waits for it."""
        if not future.done():
            me = getcurrent()
            future.add_done_callback(lambda _: self._at(self.now, me))
            while not future.done():
                self._hub.switch()
        return future.result()

    def kill(self, coroutine: Any) -> None:
        """End a coroutine where it is. Its descriptors and locks are released, as the kernel does for a process."""
        if not coroutine.dead:
            coroutine.parent = getcurrent()
            coroutine.throw(GreenletExit)

    def run(self, is_over: Callable[[], bool]) -> None:
        """Run until something is over. An error of a coroutine ends it.

        Raises:
            AssertionError: Nobody has anything to do before it is over.
        """
        while not is_over():
            assert self._due, "all coroutines wait, for ever"
            self.now, _, coroutine = heapq.heappop(self._due)
            if not coroutine.dead:
                coroutine.switch()

    def _at(self, time: float, coroutine: Any) -> None:
        heapq.heappush(self._due, (time, next(self._order), coroutine))
