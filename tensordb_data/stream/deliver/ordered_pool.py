"""Runs tasks on a few threads, and yields their results in order. After the iteration, no task begins."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from tensordb_data.common.system.fork import at_fork

T = TypeVar("T")


_PATIENCE = 10.0
"""Seconds that a fork waits for threads that are about to end."""


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
    over = threading.Event()
    pool = ThreadPoolExecutor(
        threads,
        thread_name_prefix="tensordb-stream",
        initializer=lambda: _threads.update({threading.current_thread(): over}),
    )
    waiting: deque[Future[T]] = deque()
    source: Iterator[Callable[[], T] | None] = iter(tasks)
    try:
        for task in source:
            if task is not None:
                waiting.append(pool.submit(task))
            while len(waiting) > (ahead if task is not None else 0):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        over.set()
        for thread in list(_threads):
            if not thread.is_alive():
                _threads.pop(thread, None)
        close = getattr(source, "close", None)
        if close is not None:
            close()


_threads: dict[threading.Thread, threading.Event] = {}
"""The threads of all pools. The event says that the iteration is over."""


def _before_fork() -> None:
    # A thread that is about to end may hold a lock. In the child, nobody would ever release it.
    for thread, over in list(_threads.items()):
        if over.is_set() and thread is not threading.current_thread():
            thread.join(_PATIENCE)


at_fork(before=_before_fork, after_in_child=_threads.clear)
