"""Arrays of numbers: stored little-endian in C order, returned in the machine's own byte order."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import operator
import struct
import sys
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tensordb_data.errors import CorruptBlobError, MissingExtraError, SchemaError
from tensordb_data.schema.field import BlobField, Buffer, Element, Rows, describe

Shape = tuple[int | None, ...]
_IS_LITTLE = sys.byteorder == "little"
_PADDED = 0x80  # in the byte of the number of dimensions


@dataclasses.dataclass(frozen=True, repr=False)
class Array(BlobField):
    """An array of one dtype.

    If all dimensions are numbers, the shape is fixed: values are stored as their bytes alone, so that a batch is read
    with one copy. Otherwise each value is stored with its own dimensions.

    Args:
        dtype: any numpy bool, integer, float or complex dtype, or one of `ml_dtypes` (bfloat16, …).
        shape: one entry for each dimension, None for a dimension that varies; or None for any shape.
        optional: whether samples may leave the field out.

    Raises:
        SchemaError: the dtype holds no numbers, or the shape is not one.
    """

    dtype: str
    shape: Shape | None = None
    was: tuple[int, ...] | None = dataclasses.field(default=None, kw_only=True, compare=False)
    """The shape that was fixed before it was made free. Its values are stored as their bytes alone still."""

    kind: ClassVar[str] = "array"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", dtype_name(self.dtype))
        object.__setattr__(self, "shape", _normal_shape(self.shape))
        if self.shape is not None and not _counts(self.shape, self.dtype):
            raise SchemaError(f"expected a shape that memory can have, found {self.shape!r} of {self.dtype}")

    def to_doc(self) -> dict[str, Any]:
        shape = None if self.shape is None else list(self.shape)
        doc = self._doc(kind=self.kind, dtype=self.dtype, shape=shape)
        return doc if self.was is None else {**doc, "was": list(self.was)}

    @property
    def fixed_shape(self) -> tuple[int, ...] | None:
        """The shape of every value, or None when shapes vary."""
        if self.shape is None:
            return None
        dims = tuple(n for n in self.shape if n is not None)
        return dims if len(dims) == len(self.shape) else None

    @property
    def fixed_nbytes(self) -> int | None:
        shape = self.fixed_shape
        return None if shape is None else math.prod(shape) * numpy_dtype(self.dtype).itemsize

    @property
    def _bare_nbytes(self) -> int:
        """The length that means the bytes alone of a value that has the shape that was fixed; -1 if none was."""
        return -1 if self.was is None else math.prod(self.was) * numpy_dtype(self.dtype).itemsize

    @property
    def element(self) -> Element:
        return self.dtype, self.shape

    def _check(self, value: Any) -> None:
        self._array(value)

    def encode(self, value: Any) -> Buffer:
        usual = _IS_LITTLE and type(value) is np.ndarray and value.shape == self.shape
        if usual and value.dtype == numpy_dtype(self.dtype):
            return bytes(value.tobytes())
        array = self._array(value)
        body = _little(array).reshape(-1).view(np.uint8).data
        if self.fixed_shape is not None or array.shape == self.was:
            return body
        head = struct.pack(f"<B{array.ndim}q", array.ndim, *array.shape)
        if len(head) + len(body) == self._bare_nbytes:  # such a length means bytes alone
            head = struct.pack(f"<BB{array.ndim}q", array.ndim | _PADDED, 0, *array.shape)
        return b"".join((head, body))

    def stored_alike(self, other: BlobField) -> bool:
        return self == other and isinstance(other, Array) and self.was == other.was

    def lengths(self, nbytes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
        rest = None if self.shape is None else self.shape[1:]
        if not self.shape or rest is None or None in rest:
            return None
        if self.shape[0] is not None:
            return np.full(len(nbytes), self.shape[0], np.int64)
        each = math.prod(n for n in rest if n is not None) * numpy_dtype(self.dtype).itemsize
        if each == 0:
            return None
        body = nbytes - (1 + 8 * len(self.shape))
        if (
            self.was is not None
        ):  # values of the shape that was fixed have no head, and one head is longer; see `encode`
            body = np.where(nbytes == self._bare_nbytes, nbytes, body)
            body = np.where((nbytes == self._bare_nbytes + 1) & (body % each != 0), body - 1, body)
        return np.where((body < 0) | (body % each != 0), -1, body // each)

    def encode_rows(self, values: Any) -> Rows | None:
        shape, size = self.fixed_shape, self.fixed_nbytes
        if shape is None or size is None:
            return None
        array = self._typed(values)
        if array.ndim < 1 or array.shape[1:] != shape:
            raise SchemaError(f"expected a column of shape (n, {', '.join(map(str, shape))}), found {describe(values)}")
        if size == 0:
            return np.empty((len(array), 0), np.uint8)
        return _little(array).reshape(-1).view(np.uint8).reshape(len(array), size)

    def decode(self, buf: Buffer) -> npt.NDArray[Any]:
        shape, start = self.fixed_shape, 0
        if shape is None and self.was is not None and len(buf) == self._bare_nbytes:
            shape = self.was
        if shape is None:
            shape, start = self._read_head(buf)
        dtype = numpy_dtype(self.dtype)
        size = math.prod(shape) * dtype.itemsize
        if len(buf) - start != size:
            raise CorruptBlobError(
                f"expected {size} bytes for {self.dtype} {shape}, found {len(buf) - start}: not a value of {self!r}"
            )
        raw = np.array(np.frombuffer(buf, np.uint8, size, start))
        return _native(raw.view(dtype)).reshape(shape)

    def decode_rows(self, rows: Rows) -> npt.NDArray[Any]:
        shape, size = self.fixed_shape, self.fixed_nbytes
        if shape is None:
            return super().decode_rows(rows)
        if rows.ndim != 2 or rows.shape[1] != size:
            raise CorruptBlobError(f"expected rows of {size} bytes for {self!r}, found {rows.shape[1:]}")
        dtype = numpy_dtype(self.dtype)
        if size == 0:
            return np.empty((len(rows), *shape), dtype)
        flat = np.ascontiguousarray(rows).reshape(-1)
        return _native(flat.view(dtype)).reshape(len(rows), *shape)

    def _read_head(self, buf: Buffer) -> tuple[tuple[int, ...], int]:
        ndim, first = buf[0] if len(buf) else 255, 1
        if self.was is not None and ndim & _PADDED:
            ndim, first = ndim & ~_PADDED, 2
        start = first + 8 * ndim
        if ndim > 64 or len(buf) < start:
            raise CorruptBlobError(f"expected an array with its dimensions, found {len(buf)} bytes that have none")
        shape = struct.unpack_from(f"<{ndim}q", buf, first)
        if any(n < 0 for n in shape) or not self._fits(shape) or not _counts(shape, self.dtype):
            raise CorruptBlobError(f"expected an array of shape {self.shape}, found {shape}")
        return shape, start

    def _array(self, value: Any) -> npt.NDArray[Any]:
        array = self._typed(value)
        if not self._fits(array.shape):
            raise SchemaError(f"expected {self.dtype} of shape {_show(self.shape)}, found {describe(array)}")
        return array

    def _typed(self, value: Any) -> npt.NDArray[Any]:
        if isinstance(value, (list, tuple, bool, int, float, complex)):
            return self._from_python(value)
        array = as_array(value)
        if array.dtype.newbyteorder("=") != numpy_dtype(self.dtype):
            raise SchemaError(
                f"expected {self.dtype}, found {describe(array)}: convert it, or give the schema this dtype"
            )
        return array

    def _from_python(self, value: Any) -> npt.NDArray[Any]:
        dtype = numpy_dtype(self.dtype)
        try:
            found = np.asarray(value)
            if found.size and not (np.can_cast(found.dtype, dtype, "same_kind") or _whole(found, dtype)):
                raise SchemaError(f"expected {self.dtype}, found a {type(value).__name__} of {found.dtype}")
            array = np.asarray(value, dtype)
            if array.shape == (0,) and self.shape and self.shape[0] in (None, 0):
                array = array.reshape(0, *(n or 0 for n in self.shape[1:]))  # an empty list of rows
            return array
        except (ValueError, TypeError, OverflowError) as error:
            if isinstance(error, SchemaError):
                raise
            raise SchemaError(f"expected {self.dtype} {_show(self.shape)}, found {describe(value)}: {error}") from None

    def _fits(self, shape: Sequence[int]) -> bool:
        if self.shape is None:
            return True
        return len(shape) == len(self.shape) and all(
            w is None or w == n for w, n in zip(self.shape, shape, strict=False)
        )


def as_array(value: Any) -> npt.NDArray[Any]:
    """`value` as a numpy array of numbers, without a copy where that is possible.

    Takes arrays, numpy scalars, torch tensors (of any device, without importing torch), PIL images and whatever
    else has `__array__`.

    Raises:
        SchemaError: it is not an array, or not one of numbers.
    """
    if not isinstance(value, (np.ndarray, np.generic)):
        if not is_array(value):
            raise SchemaError(f"expected an array, found {describe(value)}")
        value = _from_foreign(value)
    if isinstance(value, np.ma.MaskedArray):
        raise SchemaError("expected an array, found a masked one, whose mask would be lost: pass .filled(value), and "
                          "the mask as a field of its own")  # fmt: skip
    array = np.asarray(value)
    dtype_name(array.dtype)
    return array


def is_array(value: Any) -> bool:
    """Whether numpy can take `value` as an array: arrays, tensors, PIL images, …"""
    return hasattr(value, "__array__") or hasattr(value, "__array_interface__")


def dtype_name(dtype: Any) -> str:
    """The name of a dtype of numbers ("uint8", "bfloat16"), whatever its byte order.

    Raises:
        SchemaError: there is no such dtype, or it holds no numbers.
    """
    found = dtype if isinstance(dtype, np.dtype) else None
    if found is None and isinstance(dtype, str):
        found = numpy_dtype(dtype)
    if found is None:
        try:
            found = np.dtype(dtype)
        except TypeError:
            raise SchemaError(f"expected a numpy dtype, found {dtype!r}") from None
    # Types of ml_dtypes are void to numpy, but unlike structured and raw void types they have a scalar of their own.
    if found.kind not in "biufc" and not (found.kind in "Vf" and found.type is not np.void):
        raise SchemaError(
            f"expected a dtype of numbers, found {found}: objects, strings, times and records cannot be stored as "
            "arrays; store text and JSON-able values as they are, and a record's columns as fields of their own"
        )
    name: str = found.newbyteorder("=").name
    return name


def numpy_dtype(name: str) -> Any:
    """The dtype of that name in the machine's byte order.

    Raises:
        SchemaError: numpy knows no such dtype on this machine.
        MissingExtraError: the dtype needs ml_dtypes, which is not installed.
    """
    found = _DTYPES.get(name)
    if found is None:
        found = _DTYPES[name] = _find_dtype(name)
    return found


_DTYPES: dict[str, Any] = {}


def _find_dtype(name: str) -> Any:
    with contextlib.suppress(TypeError, ValueError, SyntaxError):
        return np.dtype(name).newbyteorder("=")
    if not name.startswith(("bfloat", "float4_", "float6_", "float8_", "int2", "int4", "uint2", "uint4")):
        raise SchemaError(f"expected a numpy dtype, found {name!r}") from None
    try:
        import ml_dtypes
    except ImportError:
        raise MissingExtraError(f"the dtype {name!r} needs the package ml_dtypes: pip install ml_dtypes") from None
    found = getattr(ml_dtypes, name, None)
    if found is None:
        raise SchemaError(f"expected a dtype of numpy or ml_dtypes, found {name!r}")
    return np.dtype(found)


def _from_foreign(value: Any) -> Any:
    dtype = str(getattr(value, "dtype", ""))
    if type(value).__module__.split(".")[0] == "torch" or dtype.startswith("torch."):
        value = value.detach().cpu().resolve_conj().resolve_neg()
        name = dtype.removeprefix("torch.")
        if name == "bfloat16" or (name.startswith("float8_") and value.element_size() == 1):
            # numpy has no such types that torch knows of: hand the bits over.
            bits = sys.modules["torch"].int16 if name == "bfloat16" else sys.modules["torch"].uint8
            return value.view(bits).numpy().view(numpy_dtype(name))
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SchemaError(f"expected an array, found {describe(value)}: {error}") from None


def _little(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """C-contiguous and little-endian; the array itself when it is both."""
    if array.dtype.kind == "V":
        return np.ascontiguousarray(array)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def _native(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What was read as if it were native, with its bytes swapped where little-endian is not native."""
    return array if sys.byteorder == "little" else array.byteswap()


def _whole(found: npt.NDArray[Any], dtype: np.dtype[Any]) -> bool:
    return found.dtype.kind in "iu" and dtype.kind in "iu"


def _normal_shape(shape: Any) -> Shape | None:
    if shape is None:
        return None
    try:
        dims = tuple(
            None if n is None else operator.index(n) for n in (shape if hasattr(shape, "__iter__") else (shape,))
        )
    except TypeError:
        dims = (-1,)
    if any(n is not None and n < 0 for n in dims) or len(dims) > 64:
        raise SchemaError(f"expected a shape such as (3, None, 224) with at most 64 dimensions, found {shape!r}")
    return dims


def _counts(shape: Shape, dtype: str) -> bool:
    """Whether numpy can count the bytes of such an array, as it must even where a dimension is 0."""
    itemsize: int = numpy_dtype(dtype).itemsize
    return math.prod(max(1, n) for n in shape if n is not None) * itemsize < 2**62


def _show(shape: Shape | None) -> str:
    return "any" if shape is None else str(shape)
