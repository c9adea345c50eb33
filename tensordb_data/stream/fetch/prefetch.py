"""Prefetch: the reader is told ahead of time what the next tasks will read, so that no thread waits for the store."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from tensordb_data.errors import TensorDBError

if TYPE_CHECKING:
    from tensordb_data.blobs.reader.reader import BlobReader
    from tensordb_data.stream.plan.sample_table import SampleTable

T = TypeVar("T")

_MOST = 256
"""Tasks that are prefetched at a time, at most."""


class Prepared(Protocol):
    """A task of which it is known what it will read."""

    @property
    def table(self) -> SampleTable:
        """The samples that will be read."""
        ...


class PrefetchTask(Generic[T]):
    """A task in two steps. The first one, `prepare`, looks up references, and the second one, `finish`, reads them."""

    def __init__(self, prepare: Callable[[], Any], finish: Callable[[Any], T]) -> None:
        self._prepare, self._finish = prepare, finish
        self._prepared: Prepared | None = None

    def __call__(self) -> T:
        prepared, self._prepared = self._prepared or self._prepare(), None
        return self._finish(prepared)

    def prefetch(self, reader: BlobReader) -> int:
        """Take the first step, and tell the reader which blobs the second step will read.

        Returns:
            The number of bytes of these blobs.
        """
        try:
            self._prepared = prepared = self._prepare()
        except TensorDBError:
            return 0  # it is raised again when the task is called
        all_refs = prepared.table.refs.values()
        for refs in all_refs:
            reader.prefetch(refs)
        return sum(int(refs.length.sum()) for refs in all_refs)


def prefetching(
    tasks: Generator[Callable[[], T] | None, None, None], reader: BlobReader
) -> Generator[Callable[[], T] | None, None, None]:
    """Yield the same tasks, but draw them as far ahead as the reader asks for.

    While everything is on this machine, the reader asks for nothing, and no task is drawn ahead.
    """
    waiting: deque[tuple[Callable[[], T], int]] = deque()
    nbytes = 0
    with closing(tasks):
        for task in tasks:
            if task is not None:
                size = task.prefetch(reader) if reader.ahead and isinstance(task, PrefetchTask) else 0
                waiting.append((task, size))
                nbytes += size
            while waiting and (task is None or nbytes >= reader.ahead or len(waiting) > _MOST):
                first, size = waiting.popleft()
                nbytes -= size
                yield first
            if task is None:
                yield None
        while waiting:
            yield waiting.popleft()[0]
