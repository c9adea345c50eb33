"""Schema documents that somebody has made up: an error of ours, or a field, and never anything else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensordb_data import Array, Audio, Bytes, Image, Scalar, SchemaError, Text, Video, Volume
from tensordb_data.errors import MissingExtraError
from tensordb_data.schema import Field, field_from_doc
from tensordb_data.schema.schema import Schema

FIELDS = [
    Array("int16", (None, 3)), Image("rgb"), Image("index"), Image("gray", "uint16", True), Bytes(), Text(), Audio(),
    Audio(16_000, 1), Video(), Volume(), Volume("int16"), *(Scalar(kind) for kind in ("bool", "int", "str", "json")),
]  # fmt: skip
KINDS = ["array", "image", "audio", "video", "volume", "bytes", "text", "int"]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("field", FIELDS, ids=repr)
def test_a_field_is_what_its_document_says(field: Field) -> None:
    assert field_from_doc(field.to_doc()) == field
    assert eval(repr(field), globals()) == field  # noqa: S307  (of our own making: one can type what is printed)
    assert Schema({"x": field})._repr_html_()


@given(
    st.fixed_dictionaries(
        {"kind": st.sampled_from(KINDS) | values},
        optional=dict.fromkeys(("dtype", "shape", "mode", "rate", "channels", "orient", "was", "optional"), values),
    )
    | values
)
@settings(max_examples=200)
def test_made_up_documents(doc: Any) -> None:
    try:
        field = field_from_doc(doc)
    except (SchemaError, MissingExtraError):
        return
    assert field_from_doc(field.to_doc()) == field
    repr(field), field.element, Schema({"x": field})._repr_html_()
