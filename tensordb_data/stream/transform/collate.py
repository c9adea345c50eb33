"""Collate: turns columns of values into the batches that the training loop receives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensordb_data.common.buffer_pool import empty
from tensordb_data.errors import SampleError
from tensordb_data.stream.fetch.decode import Column
from tensordb_data.stream.spec import Ragged

Batch = dict[str, Any]
Name = Callable[[int], str]
"""Returns how errors speak of the sample in a row."""


def slice_batch(columns: dict[str, Column], low: int, high: int, ragged: Ragged, name: Name) -> Batch:
    """Make a batch of the rows `low` to `high` - 1.

    If the values of a field have one shape and dtype, they become an array [high - low, ...]. Otherwise `ragged` says
    what they become.

    Raises:
        SampleError: The arrays of a field differ, and `ragged` is "error"; or it is "pad", and they differ in more than
            size. The message names the first sample that differs.
    """
    batch: Batch = {}
    for field, column in columns.items():
        part = column[low:high]
        if isinstance(part, np.ndarray):
            batch[field] = part
        elif ragged == "pad" and isinstance(part[0], np.ndarray) and part[0].ndim:
            batch[field], batch[lengths_field(field)] = _pad(field, part, lambda row: name(low + row))
        else:
            batch[field] = _stack(field, part, ragged, lambda row: name(low + row))
    return batch


def lengths_field(field: str) -> str:
    """The name of the field with the true shapes of the padded field `field`."""
    return f"{field}_lengths"


def _stack(field: str, items: list[Any], ragged: Ragged, name: Name) -> Any:
    first = items[0]
    if isinstance(first, (bool, int, float, np.generic)) and all(type(item) is type(first) for item in items):
        return np.array(items)
    if not isinstance(first, np.ndarray):
        return items
    for row, item in enumerate(items):
        if not isinstance(item, np.ndarray) or item.shape != first.shape or item.dtype != first.dtype:
            if ragged != "list":
                raise _differs(
                    f"{name(row)}, field {field!r}", f"{first.dtype}{list(first.shape)}", item,
                    'resize in a transform, or use ragged="list" or "pad"',
                )  # fmt: skip
            return items
    return np.stack(items, out=empty((len(items), *first.shape), first.dtype))


def _pad(field: str, items: list[Any], name: Name) -> tuple[NDArray[Any], NDArray[np.int64]]:
    first = items[0]
    for row, item in enumerate(items):
        if not isinstance(item, np.ndarray) or item.ndim != first.ndim or item.dtype != first.dtype:
            raise _differs(
                f"{name(row)}, field {field!r}", f"{first.dtype} of {first.ndim} dimensions", item,
                "padding only evens out sizes",
            )  # fmt: skip
    shapes = np.array([item.shape for item in items], np.int64)
    padded = np.zeros((len(items), *shapes.max(axis=0)), first.dtype)
    for target, item in zip(padded, items, strict=True):
        target[tuple(map(slice, item.shape))] = item
    return padded, shapes[:, 0] if first.ndim == 1 else shapes


def _differs(where: str, expected: str, item: Any, advice: str) -> SampleError:
    return SampleError(f"{where}: expected {expected} as in the rest of the batch, found {_describe(item)}; {advice}")


class ColumnBuilder:
    """Builds the column of one field from its values.

    As long as the values are arrays of one shape and dtype, each value is copied to its place in one array [m, ...] as
    it comes. Otherwise the column is a list. To stack the values at the end would read and write all of them again.

    Args:
        m: the number of values.
        stack: whether to make an array. If not, the column is a list.
    """

    def __init__(self, m: int, stack: bool) -> None:
        self._m, self._stack, self._count = m, stack, 0
        self._array: NDArray[Any] | None = None
        self._items: list[Any] = []

    def add(self, value: Any) -> None:
        """Add the next value. An array is copied."""
        if self._stack and isinstance(value, np.ndarray):
            if self._array is None:
                self._array = empty((self._m, *value.shape), value.dtype.newbyteorder("="))
            if value.shape == self._array.shape[1:] and value.dtype == self._array.dtype:
                self._array[self._count] = value
                self._count += 1
                return
        if self._array is not None:
            self._items = [self._array[row, ...].copy() for row in range(self._count)]
            self._array = None
        self._stack = False
        self._items.append(value)

    def column(self) -> Column:
        """The column of all values."""
        return self._items if self._array is None else self._array


def build_column(values: Iterable[Any], m: int, stack: bool) -> Column:
    """Build the column of m values; see `ColumnBuilder`."""
    builder = ColumnBuilder(m, stack)
    for value in values:
        builder.add(value)
    return builder.column()


def materialize(values: Mapping[str, Column | Iterable[Any]], m: int, stack: bool) -> dict[str, Column]:
    """Build those columns whose values are still iterators; see `ColumnBuilder`."""
    return {
        name: column if isinstance(column, (np.ndarray, list)) else build_column(column, m, stack)
        for name, column in values.items()
    }


def to_samples(columns: Mapping[str, Iterable[Any]]) -> Iterator[Batch]:
    """Yield one dict of fields per row."""
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _describe(item: Any) -> str:
    return f"{item.dtype}{list(item.shape)}" if isinstance(item, np.ndarray) else type(item).__name__
