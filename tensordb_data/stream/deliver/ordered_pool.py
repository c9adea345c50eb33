"""Runs tasks on a few threads, and yields their results in order. After the iteration, no task begins.

The pools of the standard library take locks in Python code, where an interrupt of the loop can leave one locked for
good; their threads then wait for it, and so does the end of the program. Here the loop waits in C alone.
"""

from __future__ import annotations

import _thread
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from tensordb_data.common.system.fork import at_fork

T = TypeVar("T")


_PATIENCE = 10.0
"""Seconds that a fork, and the end of Python, wait for threads that are about to end."""

_LOOK = 1.0
"""Seconds after which the loop looks for a signal that came just before it waited."""


class PythonEndedError(Exception):
    """The main thread has ended, and no task begins any more."""


class _Task(Generic[T]):
    """A call, and what becomes of it."""

    __slots__ = ("_call", "_done", "_error", "_value")

    def __init__(self, call: Callable[[], T]) -> None:
        self._call: Callable[[], T] | None = call
        self._value: T | None = None
        self._error: BaseException | None = None
        self._done = threading.Lock()
        self._done.acquire()

    def run(self) -> None:
        call, self._call = self._call, None
        assert call is not None
        try:
            self._value = call()
        except BaseException as error:
            self._error = error
        del call
        self._done.release()

    def drop(self) -> None:
        self._call, self._error = None, PythonEndedError()
        self._done.release()

    def result(self, pool: _Pool) -> T:
        while not self._done.acquire(timeout=_LOOK):
            if pool.over and self._call is not None:  # it was put behind what ends the threads
                raise PythonEndedError
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # it holds this frame
        value, self._value = self._value, None
        return value  # type: ignore[return-value]


class _Pool:
    """Threads that run tasks until the pool is over."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._tasks: SimpleQueue[_Task[Any] | None] = SimpleQueue()
        self._started = 0
        self.over = False

    def submit(self, task: _Task[T]) -> _Task[T]:
        if self.over:
            raise PythonEndedError
        self._tasks.put(task)
        if self._started < self._count:
            self._started += 1
            work = partial(_work, weakref.ref(self), self._tasks)
            thread = threading.Thread(target=work, name="tensordb-stream", daemon=True)
            _threads[thread] = weakref.ref(self)
            # Not here: `start` waits in Python code until the thread has begun.
            _thread.start_new_thread(_start, (thread, work))
        return task

    def end(self) -> None:
        self.over = True
        for _ in range(self._started):
            self._tasks.put(None)
        for thread in list(_threads):
            if thread.ident is not None and not thread.is_alive():
                _threads.pop(thread, None)


def _start(thread: threading.Thread, work: Callable[[], None]) -> None:
    try:
        thread.start()
    except RuntimeError:  # there are as many as there may be: this one takes its place
        work()


def _work(pool: weakref.ref[_Pool], tasks: SimpleQueue[_Task[Any] | None]) -> None:
    """Run tasks until the pool is over, or is gone: an interrupt may have come as it was told that it is over."""
    while True:
        try:
            task = tasks.get(timeout=_LOOK)
        except Empty:
            if _is_over(pool):
                return
            continue
        if task is None:
            return
        if _is_over(pool):
            task.drop()
        else:
            task.run()
        del task


def _is_over(pool: weakref.ref[_Pool]) -> bool:
    found = pool()
    return found is None or found.over


def ordered(tasks: Iterable[Callable[[], T] | None], threads: int, ahead: int) -> Generator[T, None, None]:
    """Run tasks on threads, and yield their results in order. The error of a task is raised in its place.

    Closing the generator drops the tasks that have not begun, and returns at once. A thread that is in the middle of a
    task, such as a read from a slow store, ends after it, and the result is dropped.

    Args:
        tasks: The tasks. `None` among them means that the next task may be long in coming. Then the results of all
            tasks before it are yielded first.
        threads: The number of threads.
        ahead: How many tasks may have begun beyond the one whose result is yielded.
    """
    pool = _Pool(threads)
    waiting: deque[_Task[T]] = deque()
    source: Iterator[Callable[[], T] | None] = iter(tasks)
    try:
        for call in source:
            if call is not None:
                waiting.append(pool.submit(_Task(call)))
            while len(waiting) > (ahead if call is not None else 0):
                yield waiting.popleft().result(pool)
        while waiting:
            yield waiting.popleft().result(pool)
    finally:
        pool.end()
        close = getattr(source, "close", None)
        if close is not None:
            close()


_threads: dict[threading.Thread, weakref.ref[_Pool]] = {}
"""The threads of all pools."""


def _before_fork() -> None:
    # A thread that is about to end may hold a lock. In the child, nobody would ever release it.
    for thread, pool in list(_threads.items()):
        if _is_over(pool) and thread.is_alive() and thread is not threading.current_thread():
            thread.join(_PATIENCE)


def _as_python_ends() -> None:
    for pool in [reference() for reference in _threads.values()]:
        if pool is not None:
            pool.end()
    deadline = time.monotonic() + _PATIENCE
    for thread in list(_threads):
        if thread.is_alive():
            thread.join(max(0.0, deadline - time.monotonic()))


at_fork(before=_before_fork, after_in_child=_threads.clear)
# Called before what is registered with `atexit`, which may close what the threads read from. It has no public name.
threading._register_atexit(_as_python_ends)  # type: ignore[attr-defined]
