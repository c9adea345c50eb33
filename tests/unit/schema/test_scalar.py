from __future__ import annotations

import datetime
import json
from typing import Any

import bson
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tensordb_data.errors import SchemaError
from tensordb_data.schema import Scalar, field_from_doc

NOW = datetime.datetime(2024, 5, 6, 7, 8, 9)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXT,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(TEXT.filter(lambda k: k[:1] != "$" and not {"\0", "."} & set(k)), inner, max_size=4)
    ),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("kind", "value", "stored"),
    [
        ("bool", True, True),
        ("bool", np.True_, True),
        ("bool", np.array(False), False),
        ("bool", torch.tensor(True), True),
        ("int", 3, 3),
        ("int", np.uint8(3), 3),
        ("int", np.array(-3), -3),
        ("int", torch.tensor(3), 3),
        ("int", 2**63 - 1, 2**63 - 1),
        ("float", 1.5, 1.5),
        ("float", 2, 2.0),
        ("float", np.float32(0.5), 0.5),
        ("float", np.longdouble(0.5), 0.5),
        ("float", np.float16(0.5), 0.5),
        ("float", torch.tensor(0.5), 0.5),
        ("float", float("inf"), float("inf")),
        ("str", "ü", "ü"),
        ("str", np.str_("x"), "x"),
        ("str", "", ""),
        ("datetime", NOW, NOW),
        ("datetime", np.datetime64("2024-05-06T07:08:09"), NOW),
        ("json", [1, (2, {"a": None})], [1, [2, {"a": None}]]),
        ("json", {"x": np.arange(3)}, {"x": [0, 1, 2]}),
        ("json", None, None),
        ("json", np.float32(0.5), 0.5),
        ("json", [NOW], [NOW]),
    ],
)
def test_values_become_plain_python(kind: str, value: object, stored: object) -> None:
    field = Scalar(kind)
    field.check(value)
    found = field.encode(value)
    assert found == stored
    assert type(found) is type(stored)
    assert bson.decode(bson.encode({"x": found})) == {"x": stored}


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("bool", 1, "expected bool, found int 1"),
        ("bool", None, "expected bool, found NoneType"),
        ("int", True, "expected int, found bool True"),
        ("int", 1.0, "expected int, found float 1.0"),
        ("int", "3", "expected int, found str '3'"),
        ("int", 2**63, "64 bits"),
        ("int", np.uint64(2**63), "64 bits"),
        ("int", np.zeros(3, int), r"found ndarray of int64 \(3,\)"),
        ("float", True, "expected float"),
        ("float", "x", "expected float"),
        ("float", 1j, "expected float"),
        ("str", b"x", "expected str"),
        ("str", 3, "expected str"),
        ("str", "\ud800", "surrogate"),
        ("datetime", "2024-01-01", "expected datetime"),
        ("datetime", datetime.date(2024, 1, 1), "expected datetime"),
        ("datetime", np.datetime64("NaT"), "expected datetime"),
        ("json", object(), "JSON-able"),
        ("json", {1: 2}, "keys that are text"),
        ("json", {"a.b": 1}, "rename it"),
        ("json", {"$a": 1}, "rename it"),
        ("json", {"a\0": 1}, "rename it"),
        ("json", [b"x"], "JSON-able"),
        ("json", [2**64], "64 bits"),
        ("json", [{"a": {1, 2}}], "JSON-able"),
        ("json", [1j], "JSON-able"),
    ],
)
def test_values_that_do_not_fit(kind: str, value: object, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        Scalar(kind).check(value)


def test_nesting_has_an_end() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(SchemaError, match="nested less than"):
        Scalar("json").check(value)


@given(JSON)
def test_json_survives(value: Any) -> None:
    assert json.dumps(Scalar("json").encode(value)) == json.dumps(value)
    assert bson.decode(bson.encode({"x": Scalar("json").encode(value)}))["x"] == value


def test_nan() -> None:
    assert np.isnan(Scalar("float").encode(float("nan")))
    assert np.isnan(Scalar("json").encode([float("nan")])[0])


@pytest.mark.parametrize(
    ("kind", "values", "stored"),
    [
        ("int", np.arange(3, dtype=np.uint8), [0, 1, 2]),
        ("int", [1, np.int8(2)], [1, 2]),
        ("int", np.array([1, 2], np.uint64), [1, 2]),
        ("float", np.arange(2), [0.0, 1.0]),
        ("float", np.array([0.5], np.float16), [0.5]),
        ("bool", np.array([True]), [True]),
        ("str", np.array(["a", "b"]), ["a", "b"]),
        ("str", ["a"], ["a"]),
        ("json", [[1], None], [[1], None]),
        ("int", torch.arange(2), [0, 1]),
    ],
)
def test_columns(kind: str, values: Any, stored: list[Any]) -> None:
    found = Scalar(kind).encode_rows(values)
    assert found == stored
    assert [type(value) for value in found] == [type(value) for value in stored]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("int", np.array([0.5])),
        ("bool", np.arange(2)),
        ("int", np.array([2**63], np.uint64)),
        ("int", np.zeros((2, 2), int)),
    ],
)
def test_columns_that_do_not_fit(kind: str, values: Any) -> None:
    with pytest.raises(SchemaError):
        Scalar(kind).encode_rows(values)


def test_optional_and_documents() -> None:
    for kind in ("bool", "int", "float", "str", "datetime", "json"):
        for optional in (False, True):
            field = Scalar(kind, optional=optional)
            assert field_from_doc(field.to_doc()) == field
            assert not field.is_blob
    assert Scalar("int", optional=True).encode(None) is None
    assert Scalar("int", optional=True).encode_rows([1, None]) == [1, None]
    with pytest.raises(SchemaError, match="expected a kind of"):
        Scalar("complex")


def test_element() -> None:
    assert [Scalar(kind).element for kind in ("bool", "int", "float", "str")] == [
        ("bool", ()),
        ("int64", ()),
        ("float64", ()),
        (None, None),
    ]
