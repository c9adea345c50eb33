"""Convert: turns the arrays of a batch into tensors, without copying them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from bson import ObjectId
from torch.utils.data._utils.collate import default_collate_fn_map

from tensordb_data.errors import SampleError
from tensordb_data.stream.transform.collate import lengths_field

_PLAIN = (torch.int64, torch.float64, torch.bool)
"""Dtypes that a DataLoader restores when it collates Python numbers. To collate numbers is faster than tensors."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


class Ragged(torch.Tensor):
    """The tensor of one sample, of its own size. A DataLoader pads it to the largest of its batch."""

    # What is computed from it is a plain tensor.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


def _padded(values: Sequence[torch.Tensor], *, collate_fn_map: Any = None) -> torch.Tensor:
    sizes = [max(size) for size in zip(*(value.shape for value in values), strict=True)]
    padded = torch.zeros((len(values), *sizes), dtype=values[0].dtype)
    for target, value in zip(padded, values, strict=True):
        target[tuple(map(slice, value.shape))] = value.as_subclass(torch.Tensor)
    return padded


def _listed(values: Sequence[Any], *, collate_fn_map: Any = None) -> list[Any]:
    return list(values)


# What a DataLoader cannot collate otherwise becomes a list, as in the batches that the engine makes.
default_collate_fn_map.update({ObjectId: _listed, dt.datetime: _listed, Ragged: _padded})


def to_tensors(batch: dict[str, Any]) -> dict[str, Any]:
    """Turn arrays into tensors over the same memory. Lists stay lists, and the arrays in them become tensors.

    Raises:
        SampleError: PyTorch does not have the dtype of a field. The message names it.
    """
    return {name: _convert(name, value) for name, value in batch.items()}


def to_pinned(batch: dict[str, Any]) -> dict[str, Any]:
    """Copy arrays into tensors in pinned memory. Arrays of a dtype that PyTorch does not have stay as they are.

    PyTorch owns the memory. It does not use it again before the copies from there to the device have ended.
    """
    return {name: _pin(name, value) for name, value in batch.items()}


def to_samples(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield one dict for each sample: tensors (views of the batch), Python numbers for scalars, other values as they
    are.
    """
    names = tuple(batch)
    for values in zip(*map(_rows, batch.values()), strict=True):
        yield dict(zip(names, values, strict=True))


def unpadded(samples: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Cut the fields that were padded within a block of samples back to their own size.

    The block is not what the loader delivers: it pads the samples of each of its batches anew.
    """
    for sample in samples:
        for name in [name for name in sample if lengths_field(name) in sample]:
            lengths = sample[lengths_field(name)]
            size = lengths.tolist() if isinstance(lengths, torch.Tensor) else [lengths]
            sample[name] = sample[name][tuple(map(slice, size))].as_subclass(Ragged)
        yield sample


def _convert(name: str, value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value if value.flags.writeable else value.copy()
        try:
            return torch.from_numpy(value)
        except TypeError as error:
            # from_numpy does not know bfloat16 and float8 of ml_dtypes: view their bits under PyTorch's name
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
    # NumPy copies on this thread, where PyTorch would start several. It copies bits, since it lacks some dtypes.
    bits = _BITS[tensor.dtype.itemsize]
    np.copyto(pinned.view(bits).numpy(), tensor.view(bits).numpy())
    return pinned


def _rows(column: Any) -> Any:
    if not isinstance(column, torch.Tensor):
        return column
    return column.tolist() if column.ndim == 1 and column.dtype in _PLAIN else column.unbind(0)
