"""The field that a first value asks for."""

from __future__ import annotations

import datetime
import pathlib
from typing import Any

import numpy as np

from tensordb_data.common.bson_values import member_value
from tensordb_data.errors import SchemaError
from tensordb_data.schema.array import Array, as_array, is_array
from tensordb_data.schema.binary import Bytes
from tensordb_data.schema.field import Field, describe
from tensordb_data.schema.image import Image, image_bytes, is_deep, is_image
from tensordb_data.schema.media.audio import Audio
from tensordb_data.schema.media.video import Video
from tensordb_data.schema.media.volume import Volume
from tensordb_data.schema.missing import is_missing
from tensordb_data.schema.scalar import Scalar

_KINDS: tuple[tuple[Any, str], ...] = (
    (bool, "bool"),
    (int, "int"),
    (float, "float"),
    (str, "str"),
    (datetime.datetime, "datetime"),
    (np.datetime64, "datetime"),
    ((list, tuple, dict), "json"),
)


def infer(value: Any) -> Field:
    """The field for a dataset whose first sample has `value` here.

    Arrays, tensors and PIL images become an `Array` of their fixed shape; encoded images an `Image`; other bytes
    `Bytes`; numbers, text, times, lists and dicts a `Scalar`, which queries see.

    Raises:
        SchemaError: nothing can store such a value, or it is a missing one.
    """
    value = member_value(value)
    if is_missing(value):
        raise SchemaError(f"{describe(value)} tells nothing about the kind of a field: declare it in schema=, such as "
                          "Scalar('int', optional=True)")  # fmt: skip
    for types, kind in _KINDS:
        if isinstance(value, types):
            field = Scalar(kind)
            field.check(value)
            return field
    if isinstance(value, pathlib.Path):
        value = _file(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        if is_image(value):
            return Image(dtype="uint16" if is_deep(value) else "uint8")
        return Bytes()
    if not is_array(value):
        raise SchemaError(
            f"cannot store {describe(value)}: expected an array, an encoded image, bytes, text, a number, a datetime, "
            "or a list or dict of such"
        )
    array = as_array(value)
    if array.ndim == 0 and array.dtype.kind in "biuf":
        kind = {"b": "bool", "f": "float"}.get(array.dtype.kind, "int")
        return Scalar(kind)
    return Array(array.dtype.name, array.shape)


def _file(path: pathlib.Path) -> Any:
    """The bytes of an image in a file.

    Raises:
        SchemaError: It is none; for a sound, video or volume the message says how to declare it.
    """
    try:
        return image_bytes(path)
    except SchemaError as error:
        for field in (Audio(), Video(), Volume()):
            try:
                field.check(path)
            except SchemaError:
                continue
            raise SchemaError(
                f"{path} is no image: declare the field in schema=, or in types= of an ingest, as {field!r}"
            ) from None
        raise error
