"""Cut sequences and streams of items into pieces that are handled at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Slices of `size` items; the last one may be shorter."""
    return (items[low : low + size] for low in range(0, len(items), size))


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items of an iterable; the last one may be shorter. Nothing is read ahead of the current list."""
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def runs_by_size(sizes: Iterable[int], limit: int) -> Iterator[tuple[int, int]]:
    """Cut items into runs of neighbours, so that the sizes in a run sum up to `limit` at most.

    An item that is larger is a run by itself.

    Yields:
        The positions of the first item and after the last.
    """
    low = high = total = 0
    for high, size in enumerate(sizes, 1):
        if high - 1 > low and total + size > limit:
            yield low, high - 1
            low, total = high - 1, 0
        total += size
    if high > low:
        yield low, high
