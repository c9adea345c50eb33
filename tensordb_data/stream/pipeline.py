"""Pipeline: tasks run on a few threads, their results come in order, and nothing outlives the iteration."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ordered(
    tasks: Iterable[Callable[[], T] | None], threads: int, ahead: int, stop: Callable[[], None] = lambda: None
) -> Generator[T, None, None]:
    """The results of `tasks`, in order, computed on `threads` threads, with at most `ahead` tasks begun or done beyond
    the one delivered. `None` among the tasks means that the next may be long in coming: what is under way is delivered
    first. An error is raised in its place. Closing the generator drops what has not begun, and waits for
    what has; `stop` is called before that, to cut it short.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="tensordb-stream")
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
        stop()
        pool.shutdown(wait=True, cancel_futures=True)
        close = getattr(source, "close", None)
        if close is not None:
            close()
