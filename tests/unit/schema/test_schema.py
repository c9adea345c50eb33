"""Schemas: inferred, declared, extended."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pytest

from tensordb_data import Array, Bytes, Image, Scalar, SchemaError, Text
from tensordb_data.schema.schema import Schema, check_field_name


def test_inferred_from_a_sample() -> None:
    sample = {"image": np.zeros((2, 3), np.uint8), "label": np.int64(3), "raw": b"xyz", "note": "a", "meta": {"a": [1]}}
    schema = Schema.inferred("d", sample)
    assert dict(schema) == {
        "image": Array("uint8", (2, 3)),
        "label": Scalar("int"),
        "raw": Bytes(),
        "note": Scalar("str"),
        "meta": Scalar("json"),
    }
    assert Schema.from_doc(schema.to_doc()) == schema


def test_declared_with_fields_and_types() -> None:
    schema = Schema.declared("d", {"scan": Array("int16", (None, 2)), "label": int, "when": dt.datetime, "meta": dict})
    assert dict(schema) == {
        "scan": Array("int16", (None, 2)),
        "label": Scalar("int"),
        "when": Scalar("datetime"),
        "meta": Scalar("json"),
    }


@pytest.mark.parametrize("fields", [{}, None, [("a", int)], {"a": "uint8"}, {"a": np.uint8}, {"tags": list}, {3: int}])
def test_malformed_declarations(fields: Any) -> None:
    with pytest.raises(SchemaError, match="dataset 'd'"):
        Schema.declared("d", fields)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "non-empty"),
        ("$a", "rename"),
        ("a.b", "rename"),
        ("a\0", "rename"),
        ("_id", "taken"),
        ("_tdb", "taken"),
        ("dataset", "taken"),
        ("tags", "taken"),
        ("\ud800", "Unicode"),
        (3, "non-empty string"),
    ],
)
def test_names_that_no_field_can_have(name: Any, says: str) -> None:
    with pytest.raises(SchemaError, match=says):
        check_field_name("d", name)


def test_unicode_names_are_fine() -> None:
    assert check_field_name("d", "größe (mm) 像素") == "größe (mm) 像素"


def test_a_stored_schema_can_be_extended_by_optional_fields_only() -> None:
    stored = Schema({"a": Scalar("int"), "b": Text(optional=True)})
    assert stored.missing(stored, "d") == {}
    assert stored.missing(Schema({"a": Scalar("int")}), "d") == {}
    assert stored.missing(Schema({"a": Scalar("int"), "b": Text()}), "d") == {}
    assert stored.missing(Schema({"a": Scalar("int"), "c": Image(optional=True)}), "d") == {"c": Image(optional=True)}
    for given, says in (
        ({"a": Scalar("int"), "c": Image()}, "optional=True"),
        ({"a": Scalar("float")}, "as stored"),
        ({"a": Scalar("int", optional=True)}, "as stored"),
        ({"b": Text(optional=True)}, "no such field"),
    ):
        with pytest.raises(SchemaError, match=says):
            stored.missing(Schema(given), "d")
