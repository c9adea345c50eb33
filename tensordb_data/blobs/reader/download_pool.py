"""Run requests to remote stores on threads, with as many bytes in flight as the network takes."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from tensordb_data.blobs.stores.base import TransientError
from tensordb_data.errors import StorageError

T = TypeVar("T")

REQUEST_COST = 128 << 10
"""Bytes that could be transferred in the time that a request takes besides."""

_THREADS = 64
_FIRST, _MOST = 32 << 20, 128 << 20
_PAYS = 1.15  # what twice as much in flight must gain to be kept
_PATIENCE = 10.0  # seconds until more is tried again
_ATTEMPTS = 3
_BACKOFF = 0.2  # seconds, at most, before the first repetition
_MOMENT = 0.05  # seconds below which a rate means nothing


class Window:
    """How many bytes to have in flight: more as long as that makes more arrive.

    Over a line of high latency the rate grows with the bytes in flight, until the line (or this machine) is full; from
    there on more would only cost memory. So the window is doubled on trial, kept if the rate rose, and otherwise taken
    back, whatever the latency and the bandwidth are.
    """

    def __init__(self) -> None:
        self.limit = _FIRST
        self._before = 0.0  # the rate at half the limit, which is on trial; 0 before the first measurement
        self._trial = True
        self._again = 0.0
        self._start = time.monotonic()
        self._done = 0

    def finished(self, cost: int, more: bool) -> None:
        """Count what has arrived; `more` says whether more was waiting, so that the window was the limit."""
        now = time.monotonic()
        if not more:
            self._start, self._done = now, 0
            return
        self._done += cost
        elapsed = now - self._start
        if self._done < 2 * self.limit or elapsed < _MOMENT:
            return
        rate = self._done / elapsed
        self._start, self._done = now, 0
        if self._trial and rate < _PAYS * self._before:
            self.limit //= 2
            self._trial, self._again = False, now + _PATIENCE
        elif (self._trial or now >= self._again) and self.limit < _MOST:
            self.limit *= 2
            self._trial, self._before = True, rate


class Fetcher:
    """Runs requests in the order they are made, urgent ones first, each on a thread of its own."""

    def __init__(self) -> None:
        self.window = Window()
        self.closed = threading.Event()
        self._pool: ThreadPoolExecutor | None = None
        self._forget()

    def submit(self, work: Callable[[], T], cost: Callable[[], int], urgent: bool = False) -> Future[T]:
        """Run `work` as soon as its cost, in bytes, fits into the window."""
        if os.getpid() != self._pid:
            self._forget()  # threads and whatever they had under way are the parent's
        future: Future[T] = Future()
        with self._lock:
            if self.closed.is_set():
                raise StorageError("the blob reader is closed: connect again")
            (self._waiting.appendleft if urgent else self._waiting.append)((future, work, cost, urgent))
            self._start()
        return future

    def retried(self, work: Callable[[], T]) -> T:
        """What `work` returns, with a few attempts where a failure may pass."""
        for attempt in range(1, _ATTEMPTS):
            try:
                return work()
            except TransientError:
                # At random, or all who failed together would come back together.
                self.closed.wait(random.uniform(0, _BACKOFF * 2 ** (attempt - 1)))
        return work()

    def close(self) -> None:
        """Begin no further request. Running requests and their threads end by themselves."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            self.closed.set()
            waiting = list(self._waiting)
            self._waiting.clear()
            pool, self._pool = self._pool, None
        for future, *_ in waiting:
            future.cancel()
        if pool is not None:
            pool.shutdown(wait=False)

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Future[Any], Callable[[], Any], Callable[[], int], bool]] = deque()
        self._flying = 0
        self._pool = None

    def _start(self) -> None:
        while self._waiting:
            future, work, cost, urgent = self._waiting[0]
            nbytes = cost()
            if self._flying and self._flying + nbytes > self.window.limit:
                return
            # The newest may still grow: few large requests cost less than many small ones, here and there.
            if not urgent and len(self._waiting) == 1 and self._flying > self.window.limit // 2:
                return
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="tensordb-blobs")
            self._waiting.popleft()
            self._flying += nbytes
            self._pool.submit(self._run, future, work, nbytes)

    def _run(self, future: Future[Any], work: Callable[[], Any], cost: int) -> None:
        try:
            if future.set_running_or_notify_cancel():
                try:
                    result = work()
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
        finally:
            del future, work
            with self._lock:
                self._flying -= cost
                self.window.finished(cost, bool(self._waiting))
                if not self.closed.is_set():
                    self._start()
