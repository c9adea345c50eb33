"""Arrays in rows of logs: pictures and the like as blobs, and distributions of numbers as histograms.

{"array": {"dtype": "|u1", "shape": [28, 28], "digest": …}}    a tensor of the project, by its content
{"array": {"dtype": "<f4", "shape": [3], "data": …}}           a small one
{"histogram": {"counts": [...], "edges": [...], "n", "min", "max", "mean", "nonfinite"}, "array": …}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tensordb_data.common.html import Report
from tensordb_data.errors import CheckpointError, CorruptBlobError, NotFoundError, SchemaError
from tensordb_data.tensors.leaf import Leaf, host_bytes
from tensordb_data.tensors.read import read_leaves
from tensordb_data.tensors.write import digest

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

INLINE = 4096
"""Bytes of an array that is put into the row itself."""
BINS = 64
_KINDS = "buif"
_LARGEST = 1 << 30
_MOST_BINS = 4096


class Logged:
    """An array that was given to a log, copied; or the counts and edges of a histogram.

    Args:
        array: The array.
        edges: Of a histogram that was counted already, the edges of its bins.
    """

    __slots__ = ("array", "edges")

    def __init__(self, array: npt.NDArray[Any], edges: npt.NDArray[Any] | None = None) -> None:
        self.array, self.edges = array, edges

    @property
    def nbytes(self) -> int:
        """Its bytes in memory."""
        return int(self.array.nbytes)


@dataclass(frozen=True)
class Histogram(Report):
    """A distribution of numbers, as a row of a log has it."""

    counts: tuple[float, ...]
    """How many numbers are in each bin; the last one has its end, too."""
    edges: tuple[float, ...]
    """Where the bins begin, and where the last one ends."""
    n: float
    """How many finite numbers there are."""
    min: float | None
    max: float | None
    mean: float | None
    nonfinite: int
    """How many are NaN or infinite; they are in no bin."""


Tensors = dict[bytes, tuple[Leaf, memoryview]]


def logged(name: str, value: Any) -> Logged | None:
    """A copy of a value that is an array of one dimension or more, or what `np.histogram` returns; None of any other.

    Raises:
        SchemaError: It is an array that a log does not take.
    """
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, np.ndarray) for part in value):
        counts, edges = value
        if counts.ndim == 1 and edges.shape == (len(counts) + 1,) and counts.dtype.kind in _KINDS:
            if len(counts) > _MOST_BINS or not np.isfinite(counts).all() or not np.isfinite(edges).all():
                raise SchemaError(f"metric {name!r}: a histogram has finite numbers, and {_MOST_BINS:,} bins at most")
            return Logged(counts.copy(), edges.copy())
    if not hasattr(value, "__array__") or getattr(value, "shape", ()) in ((), None):
        return None
    detach = getattr(value, "detach", None)
    if callable(detach):  # of torch: on any device, and of dtypes that NumPy does not have
        value = detach()
        value = value.float() if "bfloat16" in str(value.dtype) else value
        value = value.cpu().numpy()
    array = np.array(value, order="C")
    if array.size == 1:  # a number
        return None
    if isinstance(value, np.ma.MaskedArray) or array.dtype.kind not in _KINDS or not array.size:
        raise SchemaError(f"metric {name!r}: expected an array of numbers with at least one, found {array.dtype} "
                          f"{array.shape}")  # fmt: skip
    if array.nbytes > _LARGEST:
        raise SchemaError(f"metric {name!r}: an array of {array.nbytes:,} bytes is too large for a log; at most 1 GiB")
    return Logged(array)


def stored(name: str, given: Logged) -> tuple[dict[str, Any], Tensors]:
    """What a row has of an array, and the tensors to store for it.

    Args:
        name: The name in the row.
        given: The array.
    """
    array = given.array
    if given.edges is not None:
        return {"histogram": _counted(array, given.edges)}, {}
    out: dict[str, Any] = {"histogram": _histogram(array)} if array.ndim == 1 else {}
    if array.ndim == 1 and array.nbytes > INLINE:
        return out, {}
    about: dict[str, Any] = {"dtype": array.dtype.str, "shape": list(array.shape)}
    leaf = Leaf(name, "numpy", array.dtype.str, array.shape, array.nbytes, array)
    data = host_bytes(leaf)
    if array.nbytes <= INLINE:
        return {**out, "array": {**about, "data": bytes(data)}}, {}
    content = digest(data)
    return {**out, "array": {**about, "digest": content}}, {content: (leaf, data)}


def is_logged(value: object) -> bool:
    """Whether a value of a row is what `stored` has made."""
    return isinstance(value, dict) and bool(value) and value.keys() <= {"array", "histogram"}


def read_array(warehouse: Warehouse, value: Mapping[str, Any], label: str) -> npt.NDArray[Any]:
    """The array of a value of a row.

    Raises:
        NotFoundError: The row only has a histogram of it.
        CorruptBlobError: It is damaged.
        StorageError: The blob store failed.
    """
    about = value.get("array")
    if about is None:
        raise NotFoundError(f"{label} is a histogram, and its numbers were not kept; log them as values[None] to keep "
                            "them")  # fmt: skip
    try:
        dtype, shape = np.dtype(about["dtype"]), tuple(int(n) for n in about["shape"])
        nbytes = math.prod(shape) * dtype.itemsize
        if dtype.kind not in _KINDS or min(shape, default=1) < 0 or nbytes > _LARGEST:
            raise ValueError(f"an array of {dtype} {shape}")
        if "data" in about:
            data = np.frombuffer(bytearray(about["data"]), np.uint8)
        else:
            data = read_leaves(warehouse, {0: (label, bytes(about["digest"]))}, label, {0: nbytes})[0]
        if data.nbytes != nbytes:
            raise ValueError(f"{data.nbytes} bytes for an array of {dtype} {shape}")
        array: npt.NDArray[Any] = data.view(dtype).reshape(shape)
        return array
    except CheckpointError as error:
        raise CorruptBlobError(f"{label}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CorruptBlobError(f"{label} is damaged: expected an array of a log, found {error}") from error


def read_histogram(value: Mapping[str, Any], label: str) -> Histogram:
    """The histogram of a value of a row.

    Raises:
        NotFoundError: It has none.
        CorruptBlobError: It is damaged.
    """
    found = value.get("histogram")
    if found is None:
        raise NotFoundError(f"{label} is an array of several dimensions, of which no histogram is made")
    try:
        counts, edges = tuple(map(float, found["counts"])), tuple(map(float, found["edges"]))
        if len(edges) != len(counts) + 1:
            raise ValueError(f"{len(edges)} edges of {len(counts)} bins")
        return Histogram(
            counts, edges, float(found["n"]), found["min"], found["max"], found["mean"], int(found["nonfinite"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptBlobError(f"{label} is damaged: expected a histogram of a log, found {error}") from error


def described(value: Mapping[str, Any]) -> str:
    """An array or histogram in words, for tables."""
    about, counted = value.get("array"), value.get("histogram")
    if isinstance(counted, dict):
        return f"histogram of {counted.get('n')} numbers from {counted.get('min')} to {counted.get('max')}"
    if isinstance(about, dict):
        return f"array {about.get('dtype')} {about.get('shape')}"
    return "array"


def _histogram(array: npt.NDArray[Any]) -> dict[str, Any]:
    numbers = array.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    about: dict[str, Any] = {"n": len(finite), "nonfinite": len(numbers) - len(finite)}
    if not len(finite):
        return {"counts": [], "edges": [0.0], **about, "min": None, "max": None, "mean": None}
    low, high = float(finite.min()), float(finite.max())
    span = (low, high) if math.isfinite(high - low) and high > low else (low, math.nextafter(low, math.inf))
    counts, edges = np.histogram(np.clip(finite, *span), bins=BINS if high > low else 1, range=span)
    return {
        "counts": counts.tolist(), "edges": edges.tolist(), **about, "min": low, "max": high,
        "mean": float(finite.mean()),
    }  # fmt: skip


def _counted(counts: npt.NDArray[Any], edges: npt.NDArray[Any]) -> dict[str, Any]:
    weights, ends = counts.astype(np.float64), edges.astype(np.float64)
    n = float(weights.sum())
    middle = (ends[1:] + ends[:-1]) / 2
    return {
        "counts": counts.tolist(), "edges": ends.tolist(), "n": n, "nonfinite": 0, "min": float(ends[0]),
        "max": float(ends[-1]), "mean": float((middle * weights).sum() / n) if n else None,
    }  # fmt: skip
