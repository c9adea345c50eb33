"""Arrow columns become fields and values: which kind each type is, and that no digit is lost on the way."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tensordb_data.errors import MissingExtraError, SchemaError
from tensordb_data.schema import Array, Audio, Bytes, Field, Image, Scalar, Video, Volume, infer
from tensordb_data.schema.image import is_gray
from tensordb_data.schema.media.audio import MAX_RATE
from tensordb_data.schema.media.containers import video_format
from tensordb_data.schema.media.dicom import is_dicom
from tensordb_data.schema.media.nifti import is_nifti
from tensordb_data.schema.media.sound import sound_format

_HEADER = 4096  # bytes that hold the header of nearly every image; one with a longer header is taken for coloured
_LONG = 64
"""Numbers in a list, on average, from which on lists of different length are arrays, and not JSON."""


def pyarrow() -> Any:
    """The module pyarrow.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import pyarrow
    except ImportError:
        raise MissingExtraError("this source needs pyarrow: pip install 'tensordb-data[tables]'") from None
    return pyarrow


class ArrowColumn:
    """What is known of one column after all of its rows were looked at.

    Args:
        name: The name of the column.
        kind: Its Arrow type.
        features: What Hugging Face says of it in the metadata of the schema; None if nothing.
    """

    def __init__(self, name: str, kind: Any, features: Any = None) -> None:
        self.name, self.kind, self._features = name, plain_type(kind), features
        self.nulls = False
        self._first: bytes | None = None
        self._lists = self._numbers = 0
        self._gray = True

    def look(self, column: Any) -> None:
        """Look at some rows."""
        types = pyarrow().types
        self.nulls |= column.null_count > 0
        if self._is_blob and self._first is None:
            self._first = self._first_bytes(column)
        if self.is_media and self._gray:
            data = plain(column).field("bytes").drop_null()
            heads = pyarrow().compute.binary_slice(data, 0, _HEADER).to_pylist() if len(data) else []
            self._gray = all(is_gray(head) for head in heads if head)
        if _is_number_list(self.kind) and not types.is_fixed_size_list(self.kind):
            column = plain(column)
            self._lists += len(column) - column.null_count
            self._numbers += sum(len(chunk.flatten()) for chunk in _chunks(column))

    def field(self, wanted: Field | None) -> Field:
        """The field of the column.

        Raises:
            SchemaError: Its values cannot be stored.
        """
        if wanted is not None:
            optional = wanted.optional or self.nulls
            return _with(wanted, optional)
        return _with(self._found(), self.nulls)

    @property
    def needs_look(self) -> bool:
        """Whether its values decide on its kind."""
        return self._is_blob or _is_number_list(self.kind)

    @property
    def is_media(self) -> bool:
        """Whether it is a struct of bytes and path, as Hugging Face stores images and audio."""
        return is_media(self.kind)

    @property
    def _is_blob(self) -> bool:
        return _is_binary(self.kind) or self.is_media

    def _first_bytes(self, column: Any) -> bytes | None:
        for value in column.drop_null()[:16].to_pylist():
            data = value.get("bytes") if isinstance(value, Mapping) else value
            if data:
                return bytes(data)
        return None

    def _is_image(self, found: Field) -> bool:
        return isinstance(found, Image) or _feature(self._features) == "Image"

    def _media(self) -> Field | None:
        """The field of sound, video or volumes, by what Hugging Face says or the first bytes; None if it is none."""
        said = _feature(self._features)
        if said == "Audio" or (not said and self._first is not None and sound_format(self._first) is not None):
            rate = self._features.get("sampling_rate") if isinstance(self._features, Mapping) else None
            return Audio(rate if isinstance(rate, int) and 0 < rate <= MAX_RATE else None)
        if said == "Video" or (not said and self._first is not None and video_format(self._first) is not None):
            return Video()
        if not said and self._first is not None and (is_nifti(self._first) or is_dicom(self._first)):
            return Volume()
        return None

    def _found(self) -> Field:
        types, kind = pyarrow().types, self.kind
        if self._is_blob:
            if self.is_media and (media := self._media()) is not None:
                return media
            found = Bytes() if self._first is None else infer(self._first)
            if not self.is_media or (self._first is not None and not self._is_image(found)):
                return found
            # As folders of images are: gray where all are, so that there is one shape of array.
            dtype = found.dtype if isinstance(found, Image) else "uint8"
            return Image("gray" if self._gray and self._first is not None else "rgb", dtype)
        shape, number = tensor_shape(kind)
        if shape is not None:
            return Array(_dtype(number), shape)
        if _is_number_list(kind) and self._numbers > _LONG * max(1, self._lists):
            return Array(_dtype(kind.value_type), (None,))
        scalars = {
            "bool": types.is_boolean(kind),
            "int": types.is_integer(kind) or types.is_time(kind) or types.is_duration(kind),
            "float": types.is_floating(kind),
            "str": types.is_string(kind) or types.is_large_string(kind) or types.is_decimal(kind),
            "datetime": types.is_timestamp(kind) or types.is_date(kind),
            "json": types.is_nested(kind) or types.is_null(kind),
        }
        for scalar, found in scalars.items():
            if found:
                return Scalar(scalar)
        raise SchemaError(
            f"column {self.name!r}: a {kind} cannot be stored; cast it to a number, string or timestamp, or leave it"
            f" out with skip=[{self.name!r}]"
        )


def is_media(kind: Any) -> bool:
    """Whether a type is a struct of bytes and path."""
    types = pyarrow().types
    if not types.is_struct(kind) or kind.num_fields != 2:
        return False
    names = {kind.field(i).name: kind.field(i).type for i in range(2)}
    return set(names) == {"bytes", "path"} and (_is_binary(names["bytes"]) or types.is_null(names["bytes"]))


def plain_type(kind: Any) -> Any:
    """A type without dictionaries, runs and views."""
    pa = pyarrow()
    types = pa.types
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if str(kind) == "string_view":
        return pa.string()
    if str(kind) == "binary_view":
        return pa.binary()
    if types.is_large_list(kind) or str(kind).startswith(("list_view", "large_list_view")):
        return pa.list_(kind.value_field.with_type(plain_type(kind.value_type)))
    return kind


def plain(column: Any) -> Any:
    """A column without dictionaries, runs and views."""
    kind = plain_type(column.type)
    if kind == column.type:
        return column
    pa = pyarrow()
    if pa.types.is_run_end_encoded(column.type):
        column = pa.compute.run_end_decode(column)
    elif pa.types.is_dictionary(column.type):
        column = column.dictionary_decode() if hasattr(column, "dictionary_decode") else column.cast(kind)
    return plain(column) if column.type != kind and pa.types.is_dictionary(column.type) else column.cast(kind)


def tensor_shape(kind: Any) -> tuple[tuple[int, ...] | None, Any]:
    """Shape and type of the numbers of each value of a type; None if values have no common shape, or are no arrays."""
    types = pyarrow().types
    if hasattr(kind, "shape") and hasattr(kind, "storage_type"):  # arrow.fixed_shape_tensor
        order = kind.permutation or range(len(kind.shape))
        return tuple(kind.shape[i] for i in order), kind.value_type
    shape: list[int] = []
    while types.is_fixed_size_list(kind):
        shape.append(kind.list_size)
        kind = kind.value_type
    return (tuple(shape), kind) if shape and _is_number(kind) else (None, None)


def values_of(name: str, column: Any, field: Field, first: int = 0) -> Any:
    """The values of a column, for a field: an array (n, …) or a list.

    Args:
        name: The name of the column.
        column: An array of pyarrow.
        field: Its field.
        first: The number of the first row, for messages.

    Raises:
        SchemaError: A value would lose digits; the message names the row.
    """
    pa = pyarrow()
    types = pa.types
    column = plain(column)
    kind = column.type
    shape, number = tensor_shape(kind)
    if shape is not None and isinstance(field, Array):
        return _tensors(column, shape, number)
    if isinstance(field, Array) and _is_number_list(kind):
        dtype = _dtype(kind.value_type)
        return [None if value is None else np.asarray(value, dtype) for value in map(_numpy, column)]
    if isinstance(field, Scalar) and column.null_count == 0 and (types.is_integer(kind) or types.is_floating(kind)):
        return np.concatenate([np.asarray(chunk) for chunk in _chunks(column)] or [np.empty(0)])
    if _kind(field) == "str" and not types.is_nested(kind) and not _is_binary(kind) and not types.is_decimal(kind):
        return column.cast(pa.string()).to_pylist()  # as the user has asked for
    if _kind(field) == "int" and types.is_timestamp(kind):
        return column.cast(pa.int64()).to_pylist()
    if types.is_timestamp(kind) and kind.unit in ("us", "ns") and _kind(field) == "datetime":
        return _milliseconds(name, column, kind, first)
    if types.is_decimal(kind):
        return [None if value is None else _decimal(value, field) for value in column.to_pylist()]
    if types.is_date(kind):
        days = column.cast(pa.timestamp("s")) if str(kind) == "date32[day]" else column.cast(pa.timestamp("ms"))
        return days.to_pylist() if _kind(field) == "datetime" else [v and str(v) for v in column.to_pylist()]
    if types.is_time(kind) or types.is_duration(kind):
        wide = pa.int32() if kind.bit_width == 32 else pa.int64()
        return column.cast(wide).to_pylist()
    if types.is_struct(kind) and is_media(kind):
        return [value and _media(value) for value in column.to_pylist()]
    if types.is_map(kind) or types.is_nested(kind):
        return [_json(value) for value in column.to_pylist(maps_as_pydicts="strict")]
    return column.to_pylist()


def _tensors(column: Any, shape: tuple[int, ...], number: Any) -> Any:
    storage = [getattr(chunk, "storage", chunk) for chunk in _chunks(column)]
    kind, dtype = column.type, _dtype(number)
    order = getattr(kind, "permutation", None)
    stored = tuple(kind.shape) if hasattr(kind, "storage_type") else shape
    size = math.prod(stored)
    out: list[Any] = []
    for chunk in storage:
        if chunk.null_count == 0:
            flat = chunk
            while hasattr(flat, "flatten") and not _is_number(flat.type):
                flat = flat.flatten()
            if flat.null_count == 0:
                rows = np.asarray(flat).astype(dtype, copy=False).reshape(len(chunk), *stored)
                out.append(np.transpose(rows, (0, *(1 + i for i in order))) if order else rows)
                continue
        values = [None if value is None else np.asarray(value, dtype) for value in chunk.to_pylist()]
        one = [v if v is None or v.size != size else v.reshape(stored) for v in values]
        out.append([v if v is None or not order else np.transpose(v, order) for v in one])
    if all(isinstance(part, np.ndarray) for part in out):
        return np.concatenate(out) if out else np.empty((0, *shape), dtype)
    return [value for part in out for value in part]


def _numpy(value: Any) -> Any:
    return None if not value.is_valid else np.asarray(value.values)


def _milliseconds(name: str, column: Any, kind: Any, first: int) -> list[Any]:
    """Times in milliseconds. Those that have finer digits are refused."""
    pa = pyarrow()
    numbers = column.cast(pa.int64())
    unit = 1000 if kind.unit == "us" else 1_000_000
    found: list[Any] = []
    for row, number in enumerate(numbers.to_pylist()):
        if number is not None and number % unit:
            raise SchemaError(
                f"column {name!r}, row {first + row}: expected a time in whole milliseconds, found one in {kind.unit},"
                f" whose digits would be lost; types={{{name!r}: str}} keeps them, and types={{{name!r}: int}} as well"
            )
        found.append(None if number is None else _time(number // unit))
    return found


def _time(milliseconds: int) -> Any:
    try:
        return dt.datetime(1970, 1, 1) + dt.timedelta(milliseconds=milliseconds)
    except OverflowError:
        return f"{milliseconds} ms"  # refused with its row


def _decimal(value: Any, field: Field) -> Any:
    if _kind(field) == "float":
        return float(value)
    if _kind(field) == "int":
        return int(value) if value == value.to_integral_value() else str(value)
    return format(value, "f")


def _media(value: Mapping[str, Any]) -> Any:
    data = value.get("bytes")
    return data if data is not None else (dict(value) if value.get("path") else None)


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    if isinstance(value, dt.datetime) or value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dt.date):
        return dt.datetime(value.year, value.month, value.day)
    if isinstance(value, (dt.time, dt.timedelta)) or type(value).__name__ == "Decimal":
        return str(value)
    return value


def _kind(field: Field) -> str:
    return getattr(field, "kind", "")


def _with(field: Field, optional: bool) -> Field:
    import dataclasses

    return dataclasses.replace(field, optional=optional)


def _feature(features: Any) -> str:
    return str(features.get("_type", "")) if isinstance(features, Mapping) else ""


def _chunks(column: Any) -> list[Any]:
    return list(column.chunks) if hasattr(column, "chunks") else [column]


def _is_binary(kind: Any) -> bool:
    types = pyarrow().types
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))


def _is_number(kind: Any) -> bool:
    types = pyarrow().types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def _is_number_list(kind: Any) -> bool:
    types = pyarrow().types
    return bool(
        (types.is_list(kind) or types.is_large_list(kind))
        and (types.is_integer(kind.value_type) or types.is_floating(kind.value_type))
    )


def _dtype(kind: Any) -> str:
    return str(np.dtype(kind.to_pandas_dtype()).name)
