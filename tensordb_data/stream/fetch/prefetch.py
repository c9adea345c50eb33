"""Announce: what the next tasks will read is told to the reader, so that a slow store need not be waited for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tensordb_data.errors import TensorDBError
from tensordb_data.stream.plan.sample_table import SampleTable

if TYPE_CHECKING:
    from tensordb_data.blobs.reader.reader import BlobReader

T = TypeVar("T")

_MOST = 256


class PrefetchTask(Generic[T]):
    """A task in two steps: `index` makes a tuple that begins with a block, and `rest` the result of it."""

    def __init__(self, prepare: Callable[[], tuple[Any, ...]], finish: Callable[..., T]) -> None:
        self._prepare, self._finish = prepare, finish
        self._prepared: tuple[Any, ...] | None = None

    def __call__(self) -> T:
        prepared, self._prepared = self._prepared or self._prepare(), None
        return self._finish(*prepared)

    def prefetch(self, reader: BlobReader) -> int:
        """Take the first step, and tell the reader of the blobs that the second one reads. Returns their bytes."""
        try:
            self._prepared = self._prepare()
        except TensorDBError:
            return 0  # it will be raised in its turn
        table: SampleTable = self._prepared[0]
        found = table.refs.values()
        for refs in found:
            reader.prefetch(refs)
        return sum(int(refs.length.sum()) for refs in found)


def prefetching(
    tasks: Generator[Callable[[], T] | None, None, None], reader: BlobReader
) -> Generator[Callable[[], T] | None, None, None]:
    """The same tasks, drawn as far ahead as the reader asks for: not at all while everything is on this machine."""
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
