"""Pipeline: tasks run on a few threads, their results come in order, and nothing is begun after the iteration."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


_PATIENCE = 10.0
"""Seconds that a fork waits for threads that are about to end."""


def ordered(tasks: Iterable[Callable[[], T] | None], threads: int, ahead: int) -> Generator[T, None, None]:
    """The results of `tasks`, in order, computed on `threads` threads, with at most `ahead` tasks begun or done beyond
    the one delivered. `None` among the tasks means that the next may be long in coming: what is under way is delivered
    first. An error is raised in its place.

    Closing the generator drops what has not begun, and returns at once: a thread that is at something, such as a read
    from a slow store, ends when that is done, and what comes of it is dropped.
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
"""Of all pipelines; the event says that the iteration is over."""


def _before_fork() -> None:
    # What a thread that is about to end holds just then, a lock say, would be held in the child for ever.
    for thread, over in list(_threads.items()):
        if over.is_set() and thread is not threading.current_thread():
            thread.join(_PATIENCE)


os.register_at_fork(before=_before_fork, after_in_child=_threads.clear)
