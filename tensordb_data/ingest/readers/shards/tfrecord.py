"""The `tf.train.Example` of a record of a TFRecord file, read without TensorFlow.

An Example is a map from names to lists: of bytes, of float32, or of int64.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from tensordb_data.common.wire.protobuf import fields, signed, varint
from tensordb_data.errors import CorruptBlobError

Values = list[bytes] | list[float] | list[int]


class PlacedBytes(bytes):
    """A value of a list of bytes, and where it begins in the record."""

    at: int


def place_of(value: memoryview | bytes, data: bytes) -> int:
    """Where a part of a record begins in it."""
    if not len(value):
        return 0
    return int(np.frombuffer(value, np.uint8).ctypes.data - np.frombuffer(data, np.uint8).ctypes.data)


def parse_example(data: bytes, *, placed: bool = False) -> dict[str, Values]:
    """The lists of a `tf.train.Example`, by name; with `placed`, bytes are `PlacedBytes`.

    Raises:
        CorruptBlobError: It is none.
    """
    try:
        out: dict[str, Values] = {}
        for number, value in fields(data):
            if number != 1 or isinstance(value, int):  # features
                continue
            for each, entry in fields(value):
                if each == 1 and not isinstance(entry, int):
                    name, values = _entry(entry, data if placed else None)
                    out[name] = values
        return out
    except (IndexError, ValueError, struct.error) as error:
        raise CorruptBlobError(f"expected a tf.train.Example, found something else: {error}") from None


def _entry(data: memoryview | bytes, record: bytes | None) -> tuple[str, Values]:
    name, values = "", cast(Values, [])
    for number, value in fields(data):
        if number == 1 and not isinstance(value, int):
            name = str(value, "utf-8")
        elif number == 2 and not isinstance(value, int):
            for kind, items in fields(value):
                if kind == 1 and record is not None and not isinstance(items, int):
                    values = cast(Values, [_placed(one, record) for n, one in fields(items) if n == 1])
                elif not isinstance(items, int):
                    values = _LISTS[kind](items) if kind in _LISTS else values
    return name, values


def _placed(value: Any, record: bytes) -> PlacedBytes:
    found = PlacedBytes(value)
    found.at = place_of(value, record)
    return found


def _bytes_list(data: memoryview | bytes) -> Values:
    return [bytes(value) for number, value in fields(data) if number == 1 and not isinstance(value, int)]


def _float_list(data: memoryview | bytes) -> Values:
    out: list[float] = []
    for number, value in fields(data):
        if number == 1:
            packed = struct.pack("<I", value) if isinstance(value, int) else bytes(value)
            out += np.frombuffer(packed, "<f4").tolist()
    return out


def _int64_list(data: memoryview | bytes) -> Values:
    out: list[int] = []
    for number, value in fields(data):
        if number != 1:
            continue
        if isinstance(value, int):
            out.append(signed(value))
            continue
        at = 0
        while at < len(value):
            one, at = varint(value, at)
            out.append(signed(one))
    return out


_LISTS: dict[int, Callable[[Any], Values]] = {1: _bytes_list, 2: _float_list, 3: _int64_list}
