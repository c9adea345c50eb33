"""The formats of other trackers: whatever a file holds, there is what it says, or an error of the library."""

from __future__ import annotations

import io
import math
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensordb_data.errors import CorruptBlobError
from tensordb_data.logs.imported.events import parse_event
from tensordb_data.logs.imported.values import Names, clean_name, config, flat, from_text, plain
from tensordb_data.logs.imported.wandb import _records

_NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def piece(kind: int, data: bytes) -> bytes:
    return struct.pack("<IHB", zlib.crc32(bytes([kind]) + data), len(data), kind) + data


@given(st.binary(max_size=200))
def test_any_bytes_as_an_event(data: bytes) -> None:
    try:
        parse_event(data, {})
    except CorruptBlobError as error:
        assert "expected an event" in str(error)


@given(st.integers(1, 9), st.binary(max_size=60))
def test_any_bytes_as_a_value_of_an_event(field: int, data: bytes) -> None:
    value = b"\x0a\x01t" + bytes([field << 3 | 2, len(data)]) + data
    summary = b"\x0a" + bytes([len(value)]) + value
    try:
        parse_event(b"\x2a" + bytes([len(summary)]) + summary, {})
    except CorruptBlobError as error:
        assert "expected an event" in str(error)


@given(st.lists(st.binary(max_size=50), max_size=4), st.data())
def test_a_file_of_wandb_that_is_cut_or_damaged(records: list[bytes], data: st.DataObject) -> None:
    whole = b":W&B\xe1\xbe\0" + b"".join(piece(1, each) for each in records)
    assert list(_records(io.BytesIO(whole), pytest.fail)) == records
    end = data.draw(st.integers(7, len(whole)))
    cuts: list[None] = []
    found = list(_records(io.BytesIO(whole[:end]), lambda: cuts.append(None)))
    assert found == records[: len(found)] and (cuts or end == 7 + sum(7 + len(each) for each in found))
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = list(_records(io.BytesIO(damaged), lambda: None))
        assert found == records[: len(found)] and len(found) < len(records)
    except CorruptBlobError:
        pass


@given(st.lists(st.text(), unique=True))
def test_each_name_has_one_of_its_own_that_a_row_takes(names: list[str]) -> None:
    here = Names()
    found = [here(name) for name in names]
    assert len(set(found)) == len(names) and found == [here(name) for name in names]
    assert all(name and "." not in name and "\0" not in name and name[0] != "$" and name != "step" for name in found)


@given(st.dictionaries(st.text(), _NESTED))
def test_any_json_as_a_row_and_as_a_configuration(values: dict[str, object]) -> None:
    from tensordb_data.runs.documents import clean_config

    left: list[str] = []
    assert all(not isinstance(value, dict) for value in flat(values, left.append).values())
    clean_config(config(values))


def test_values() -> None:
    assert [from_text(text) for text in ("1", "-0.5", "1e-3", "True", "None", "cnn", "1_0", " x")] == [
        1, -0.5, 0.001, True, None, "cnn", "1_0", " x"]  # fmt: skip
    assert math.isnan(from_text("NaN")) and plain("-Infinity") == -math.inf and plain(-(10**400)) == -math.inf
    assert clean_name("$a.b") == "_a/b" and len(clean_name("x" * 5000)) < 600
