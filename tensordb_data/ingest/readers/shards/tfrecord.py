"""TFRecord files: records, and the `tf.train.Example` in each, read without TensorFlow.

    u64 length | u32 checksum of it | data | u32 checksum of it

An Example is a map from names to lists: of bytes, of float32, or of int64.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

import numpy as np

from tensordb_data.common.system.modules import optional
from tensordb_data.errors import CorruptBlobError

_MOST_RECORD = 2 << 30
_LOOKED = 100
"""Of so many records one has its checksum compared, where no library does this fast."""
_SHORT = 4096
_GZIP = b"\x1f\x8b"

Values = list[bytes] | list[float] | list[int]


def is_record(head: bytes) -> bool:
    """Whether bytes begin with a record, by the checksum of its length."""
    return len(head) >= 12 and _masked(crc32c(head[:8])) == int.from_bytes(head[8:12], "little")


def records(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The data of each record of a file, also of one that gzip has compressed.

    Raises:
        CorruptBlobError: A record is cut off, or does not match its checksum.
    """
    head = file.read(2)
    file.seek(0)
    source = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if head == _GZIP else file
    fast, number = _fast_crc(), 0
    limit = _MOST_RECORD if head == _GZIP else min(size, _MOST_RECORD)
    try:
        while header := source.read(12):
            if len(header) < 12:
                raise CorruptBlobError(f"record {number}: expected a length, found the end of the file")
            length, check = struct.unpack("<QI", header)
            if _masked(crc32c(header[:8])) != check:
                raise CorruptBlobError(f"record {number}: its length does not match its checksum: no TFRecord file, or "
                                       "a damaged one")  # fmt: skip
            if length > limit:
                raise CorruptBlobError(f"record {number}: expected at most {limit:,} bytes, found {length:,}")
            data, footer = source.read(length), source.read(4)
            if len(data) < length or len(footer) < 4:
                raise CorruptBlobError(f"record {number}: expected {length:,} bytes, found the end of the file")
            if fast is not None or length <= _SHORT or number % _LOOKED == 0:
                found = crc32c(data) if fast is None else fast(data)
                if _masked(found) != struct.unpack("<I", footer)[0]:
                    raise CorruptBlobError(f"record {number}: does not match its checksum")
            yield data
            number += 1
    except (OSError, EOFError) as error:
        if isinstance(error, CorruptBlobError):
            raise
        raise CorruptBlobError(f"record {number}: {error}") from None


def parse_example(data: bytes) -> dict[str, Values]:
    """The lists of a `tf.train.Example`, by name.

    Raises:
        CorruptBlobError: It is none.
    """
    try:
        out: dict[str, Values] = {}
        for number, value in _fields(data):
            if number != 1 or isinstance(value, int):  # features
                continue
            for each, entry in _fields(value):
                if each == 1 and not isinstance(entry, int):
                    name, values = _entry(entry)
                    out[name] = values
        return out
    except (IndexError, ValueError, struct.error) as error:
        raise CorruptBlobError(f"expected a tf.train.Example, found something else: {error}") from None


def _entry(data: memoryview | bytes) -> tuple[str, Values]:
    name, values = "", cast(Values, [])
    for number, value in _fields(data):
        if number == 1 and not isinstance(value, int):
            name = str(value, "utf-8")
        elif number == 2 and not isinstance(value, int):
            for kind, items in _fields(value):
                if not isinstance(items, int):
                    values = _LISTS[kind](items) if kind in _LISTS else values
    return name, values


def _bytes_list(data: memoryview | bytes) -> Values:
    return [bytes(value) for number, value in _fields(data) if number == 1 and not isinstance(value, int)]


def _float_list(data: memoryview | bytes) -> Values:
    out: list[float] = []
    for number, value in _fields(data):
        if number == 1:
            packed = struct.pack("<I", value) if isinstance(value, int) else bytes(value)
            out += np.frombuffer(packed, "<f4").tolist()
    return out


def _int64_list(data: memoryview | bytes) -> Values:
    out: list[int] = []
    for number, value in _fields(data):
        if number != 1:
            continue
        if isinstance(value, int):
            out.append(_signed(value))
            continue
        at = 0
        while at < len(value):
            one, at = _varint(value, at)
            out.append(_signed(one))
    return out


_LISTS: dict[int, Callable[[Any], Values]] = {1: _bytes_list, 2: _float_list, 3: _int64_list}


def _fields(data: memoryview | bytes) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message: number, and an integer or bytes."""
    view, at = memoryview(data), 0
    while at < len(view):
        tag, at = _varint(view, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(view, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, at = _varint(view, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of the wire type {kind}")
        if at + length > len(view):
            raise ValueError("a field that is cut off")
        part = view[at : at + length]
        at += length
        yield tag >> 3, part if kind == 2 else int.from_bytes(part, "little")


def _varint(data: memoryview | bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
        shift += 7
        if shift > 63:
            raise ValueError("an integer of more than 64 bits")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _make_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _make_table()


def crc32c(data: bytes) -> int:
    """The checksum CRC-32C, slowly."""
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _fast_crc() -> Callable[[bytes], int] | None:
    """The checksum by a library, if one is installed."""
    for module, name in (("google_crc32c", "value"), ("crc32c", "crc32c")):
        found = getattr(optional(module), name, None)
        if found is not None:
            return cast(Callable[[bytes], int], found)
    return None
