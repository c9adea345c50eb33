"""Batch: from columns of values to the dicts that the training loop receives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensordb_data.errors import SampleError
from tensordb_data.stream.decode import Column
from tensordb_data.stream.spec import Ragged

Batch = dict[str, Any]


def cut(columns: dict[str, Column], low: int, high: int, ragged: Ragged, name: Callable[[int], str]) -> Batch:
    """The batch of rows `low`..`high`-1: an array [high - low, ...] per field where the values have one shape and
    dtype, otherwise what `ragged` says.

    Raises:
        SampleError: a field's arrays differ, and `ragged` is "error", or "pad" and they differ in more than size;
            names the first sample that does.
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


def _stack(field: str, items: list[Any], ragged: Ragged, name: Callable[[int], str]) -> Any:
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
    return np.stack(items)


def _pad(field: str, items: list[Any], name: Callable[[int], str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
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


def to_columns(samples: Sequence[Batch], name: Callable[[int], str]) -> dict[str, Column]:
    """Columns of samples that all have the same fields.

    Raises:
        SampleError: a sample lacks a field of the first, or has another.
    """
    fields = samples[0].keys()
    for row, sample in enumerate(samples):
        if sample.keys() != fields:
            raise SampleError(
                f"{name(row)}: the transform returned the fields {', '.join(sample)}, and for other samples of the"
                f" batch {', '.join(fields)}; return the same fields for every sample"
            )
    return {field: [_plain(sample[field]) for sample in samples] for field in fields}


def to_samples(columns: dict[str, Column]) -> list[Batch]:
    """One dict of fields per row."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _plain(value: Any) -> Any:
    """Framework tensors that a transform returned, as numpy arrays."""
    return np.asarray(value) if hasattr(value, "__array__") and not isinstance(value, np.generic) else value


def _describe(item: Any) -> str:
    return f"{item.dtype}{list(item.shape)}" if isinstance(item, np.ndarray) else type(item).__name__
