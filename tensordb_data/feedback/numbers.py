"""Check and take what a training loop gives, in as little of its time as possible."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from tensordb_data.errors import QueryError

Numbers = NDArray[Any] | Callable[[], NDArray[Any]]
"""The numbers of some samples; or what fetches them from a device, and waits for it."""

_IDS = 'the `_id`s of the samples, such as batch["_id"] of a stream with fields=[..., "_id"]'


def sample_ids(ids: Any) -> list[ObjectId]:
    """A copy of the ids of some samples.

    Raises:
        QueryError: They are none.
    """
    if type(ids) is list:
        found = ids.copy()
    elif isinstance(ids, (tuple, np.ndarray)) and getattr(ids, "ndim", 1) == 1:
        found = list(ids.tolist() if isinstance(ids, np.ndarray) else ids)
    else:
        raise QueryError(f"ids: expected a list of {_IDS}; found {_brief(ids)}")
    if found and set(map(type, found)) != {ObjectId}:
        return [_id(place, id) for place, id in enumerate(found)]
    return found


def sample_numbers(name: str, numbers: Any, n: int) -> Numbers:
    """A copy of n numbers. Those on a device are copied there, and fetched by whoever calls what is returned.

    Raises:
        QueryError: They are no real numbers, or not n of them.
    """
    shape = getattr(numbers, "shape", None)
    if shape is None and isinstance(numbers, (list, tuple)):
        try:
            numbers = np.array(numbers)
        except (TypeError, ValueError) as error:
            raise QueryError(f"{name}=: expected a number for each of {n} samples; found {error}") from None
        shape = numbers.shape
    if shape is None or tuple(shape) != (n,):
        found = _brief(numbers) if shape is None else f"shape {tuple(shape)}"
        whole = shape is not None and len(shape) == 0
        hint = '; a loss of each sample is what reduction="none" gives' if whole else ""
        raise QueryError(f"{name}=: expected one number for each of {n} samples, of shape ({n},); found {found}{hint}")
    if isinstance(numbers, np.ndarray):
        _check_kind(name, numbers.dtype.kind, numbers.dtype)
        return numbers.astype(np.float64)
    if hasattr(numbers, "detach"):
        return _of_torch(name, numbers)
    # Arrays of JAX and TensorFlow never change. To look at one may wait for its device.
    if hasattr(numbers, "block_until_ready") or type(numbers).__name__ == "EagerTensor":
        _check_kind(name, _kind(numbers.dtype), numbers.dtype)
        return lambda: np.asarray(numbers)
    try:
        taken = np.array(numbers)
    except Exception as error:  # an object may refuse it by any error
        raise QueryError(f"{name}=: expected an array of numbers; found {_brief(numbers)}: {error}") from error
    _check_kind(name, taken.dtype.kind, taken.dtype)
    return taken.astype(np.float64)


def _of_torch(name: str, tensor: Any) -> Numbers:
    tensor = tensor.detach()
    if tensor.is_cpu:
        try:
            found = tensor.numpy()
        except TypeError:  # NumPy has no bfloat16
            found = tensor.to(sys.modules["torch"].float64).numpy()
        _check_kind(name, found.dtype.kind, tensor.dtype)
        taken: NDArray[Any] = found.astype(np.float64)
        return taken
    if tensor.is_complex():
        _check_kind(name, "c", tensor.dtype)
    copied = tensor.clone()
    if tensor.device.type != "cuda":
        return lambda: _on_host(copied)
    ready = sys.modules["torch"].cuda.Event()
    ready.record()  # on the stream of the loop, behind the copy

    def fetch() -> NDArray[Any]:
        ready.synchronize()
        return _on_host(copied)

    return fetch


def _on_host(tensor: Any) -> NDArray[Any]:
    found: NDArray[Any] = tensor.cpu().to(sys.modules["torch"].float64).numpy()
    return found


def _kind(dtype: Any) -> str:
    found = getattr(dtype, "as_numpy_dtype", dtype)
    try:
        kind = np.dtype(found).kind
    except TypeError:
        return "f" if "float" in str(dtype) else "O"
    return "f" if kind == "V" and "float" in str(dtype) else kind  # bfloat16


def _check_kind(name: str, kind: str, dtype: Any) -> None:
    if kind not in "fiub":
        raise QueryError(f"{name}=: expected real numbers; found {dtype}")


def _id(place: int, id: Any) -> ObjectId:
    if isinstance(id, ObjectId):
        return id
    if isinstance(id, str) and ObjectId.is_valid(id):
        return ObjectId(id)
    raise QueryError(f"ids: expected {_IDS}; found {id!r:.80} at {place}")


def _brief(value: Any) -> str:
    return f"a {type(value).__name__}"
