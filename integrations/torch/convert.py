"""Tensors: the batches of a stream as PyTorch receives them, without copying."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from tensordb_data.errors import SampleError

_PLAIN = (torch.int64, torch.float64, torch.bool)
"""Columns that come back in the same dtype when a DataLoader collates Python numbers, which is faster."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


def to_tensors(batch: dict[str, Any]) -> dict[str, Any]:
    """Arrays become tensors over the same memory; lists stay lists, the arrays in them become tensors.

    Raises:
        SampleError: PyTorch has no such dtype; names the field.
    """
    return {name: _convert(name, value) for name, value in batch.items()}


def to_pinned(batch: dict[str, Any]) -> dict[str, Any]:
    """`to_tensors`, in pinned memory of PyTorch's own, which it does not use again before copies from there have ended.
    Arrays of dtypes that PyTorch does not have stay as they are.
    """
    return {name: _pin(name, value) for name, value in batch.items()}


def to_samples(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One dict per sample: tensors (views of the batch), Python numbers for scalars, other values as they are."""
    names = tuple(batch)
    for values in zip(*map(_rows, batch.values()), strict=True):
        yield dict(zip(names, values, strict=True))


def _convert(name: str, value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value if value.flags.writeable else value.copy()
        try:
            return torch.from_numpy(value)
        except TypeError as error:
            # bfloat16 and float8 of ml_dtypes, which from_numpy does not know: their bits, under PyTorch's name
            dtype = getattr(torch, value.dtype.name, None)
            if isinstance(dtype, torch.dtype) and dtype.itemsize == value.dtype.itemsize:
                return torch.from_numpy(value.view(f"u{dtype.itemsize}")).view(dtype)
            raise SampleError(
                f"field {name!r}: PyTorch has no dtype for {value.dtype}; convert it in a transform, or leave it out"
                " with `fields`"
            ) from error
    if isinstance(value, list) and any(isinstance(item, np.ndarray) for item in value):
        return [_convert(name, item) if isinstance(item, np.ndarray) else item for item in value]
    return value


def _pin(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_pin(name, item) if isinstance(item, np.ndarray) else item for item in value]
    if not isinstance(value, np.ndarray):
        return value
    try:
        tensor = _convert(name, value)
    except SampleError:
        return value
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    # by numpy, on this thread, where PyTorch would start a team of them; in bits, for numpy has not all dtypes
    bits = _BITS[tensor.dtype.itemsize]
    np.copyto(pinned.view(bits).numpy(), tensor.view(bits).numpy())
    return pinned


def _rows(column: Any) -> Any:
    if not isinstance(column, torch.Tensor):
        return column
    return column.tolist() if column.ndim == 1 and column.dtype in _PLAIN else column.unbind(0)
