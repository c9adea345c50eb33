"""TFRecord files and their Examples."""

from __future__ import annotations

import gzip
import io
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensordb_data.common.wire import tfrecord
from tensordb_data.common.wire.tfrecord import crc32c, records
from tensordb_data.errors import CorruptBlobError
from tensordb_data.ingest.readers.shards.tfrecord import parse_example


def varint(value: int) -> bytes:
    out = bytearray()
    value &= (1 << 64) - 1
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def example(values: dict[str, list[Any]], packed: bool = True) -> bytes:
    entries = b""
    for name, items in values.items():
        if items and isinstance(items[0], bytes):
            inner = field(1, b"".join(field(1, item) for item in items))
        elif items and isinstance(items[0], float):
            body = (field(1, np.array(items, "<f4").tobytes()) if packed
                    else b"".join(b"\x0d" + struct.pack("<f", item) for item in items))  # fmt: skip
            inner = field(2, body)
        else:
            body = field(1, b"".join(map(varint, items))) if packed else b"".join(b"\x08" + varint(n) for n in items)
            inner = field(3, body)
        entries += field(1, field(1, name.encode()) + field(2, inner))
    return field(1, entries)


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def file_of(*examples: bytes) -> bytes:
    out = b""
    for data in examples:
        length = struct.pack("<Q", len(data))
        out += length + masked(length) + data + masked(data)
    return out


def read(data: bytes) -> list[bytes]:
    return list(records(io.BytesIO(data), len(data)))


def test_the_checksum_is_that_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283 and crc32c(bytes(32)) == 0x8A9136AA


@pytest.mark.parametrize("packed", [True, False])
def test_lists_of_an_example(packed: bool) -> None:
    values = {"image": [b"\xff\xd8", b""], "label": [-3, 2**63 - 1, -(2**63), 0], "box": [0.5, -1.0], "größe": [7]}
    assert parse_example(example(values, packed)) == values
    assert parse_example(b"") == {} and parse_example(example({"none": []})) == {"none": []}


def test_records_come_in_order_also_compressed() -> None:
    data = file_of(b"a", b"", b"c" * 5000)
    assert read(data) == [b"a", b"", b"c" * 5000] == read(gzip.compress(data)) and read(b"") == []


def test_damage_is_found_by_the_checksums() -> None:
    data = file_of(b"first", b"second")
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1
        with pytest.raises(CorruptBlobError, match=r"record [01]"):
            read(bytes(damaged))
    for size in range(1, len(data)):
        if size != len(file_of(b"first")):
            with pytest.raises(CorruptBlobError, match=r"record [01]"):
                read(data[:size])


def test_a_library_is_used_for_the_checksum_of_every_record(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(file_of(b"first", b"x" * 5000))
    data[-100] ^= 1
    assert len(read(bytes(data))) == 2  # a long record that is not among those that are looked at
    monkeypatch.setattr(tfrecord, "_fast_crc", lambda: crc32c)
    with pytest.raises(CorruptBlobError, match="record 1: does not match its checksum"):
        read(bytes(data))


@given(st.dictionaries(st.text(max_size=5), st.one_of(
    st.lists(st.binary(max_size=9), min_size=1, max_size=3), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=3)), max_size=4), st.booleans())  # fmt: skip
def test_what_goes_in_comes_out(values: dict[str, list[Any]], packed: bool) -> None:
    assert parse_example(example(values, packed)) == values


@given(st.binary(max_size=60))
def test_noise_is_one_error(data: bytes) -> None:
    for function in (parse_example, read):
        try:
            function(data)
        except CorruptBlobError:
            pass
