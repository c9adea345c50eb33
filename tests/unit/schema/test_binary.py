from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensordb_data.errors import CorruptBlobError, SchemaError
from tensordb_data.schema import Bytes, Text, field_from_doc


@given(st.binary())
def test_bytes(data: bytes) -> None:
    for value in (data, bytearray(data), memoryview(data)):
        Bytes().check(value)
        assert bytes(Bytes().encode(value)) == data
    found = Bytes().decode(memoryview(data))
    assert type(found) is bytes
    assert found == data


def test_bytes_of_memory_with_strides() -> None:
    assert bytes(Bytes().encode(memoryview(b"abcdef")[::2])) == b"ace"


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text(value: str) -> None:
    Text().check(value)
    assert Text().decode(memoryview(bytes(Text().encode(value)))) == value


@pytest.mark.parametrize("value", ["text", 3, None, [1]])
def test_what_is_not_bytes(value: object) -> None:
    with pytest.raises(SchemaError, match="expected bytes, found"):
        Bytes().check(value)


@pytest.mark.parametrize("value", [b"bytes", 3, None])
def test_what_is_not_text(value: object) -> None:
    with pytest.raises(SchemaError, match="expected text, found"):
        Text().check(value)


def test_lone_surrogates() -> None:
    with pytest.raises(SchemaError, match="surrogate"):
        Text().encode("a\ud800")


def test_stored_bytes_that_are_not_utf8() -> None:
    with pytest.raises(CorruptBlobError, match="UTF-8"):
        Text().decode(b"\xff\xfe")


@pytest.mark.parametrize("field", [Bytes(), Text(), Bytes(optional=True), Text(optional=True)])
def test_documents(field: Bytes | Text) -> None:
    assert field_from_doc(field.to_doc()) == field
    assert field.element == (None, None)
    assert field.fixed_nbytes is None
    assert field.encode_rows([]) is None
