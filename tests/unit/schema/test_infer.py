from __future__ import annotations

import datetime
import io
import pathlib
from typing import Any

import ml_dtypes
import numpy as np
import PIL.Image
import pytest
import torch

from tensordb_data.errors import SchemaError
from tensordb_data.schema import Array, Bytes, Field, Image, Scalar, field_from_doc, infer
from tests.media.recordings import sound


def png(dtype: str = "uint8") -> bytes:
    out = io.BytesIO()
    PIL.Image.fromarray(np.zeros((4, 5), dtype)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (np.zeros((28, 28), np.uint8), Array("uint8", (28, 28))),
        (np.zeros(3, ">f8"), Array("float64", (3,))),
        (np.zeros((0, 4), np.float16), Array("float16", (0, 4))),
        (np.zeros(2, ml_dtypes.bfloat16), Array("bfloat16", (2,))),
        (np.array(1j), Array("complex128", ())),
        (np.complex64(1j), Array("complex64", ())),
        (torch.zeros(3, 4), Array("float32", (3, 4))),
        (torch.zeros(2, dtype=torch.bfloat16), Array("bfloat16", (2,))),
        (PIL.Image.new("RGB", (5, 4)), Array("uint8", (4, 5, 3))),
        (png(), Image()),
        (bytearray(png()), Image()),
        (png("uint16"), Image(dtype="uint16")),
        (b"\xff\xd8\xff\xe0", Image()),
        (b"other", Bytes()),
        (b"", Bytes()),
        (memoryview(b"x"), Bytes()),
        (True, Scalar("bool")),
        (np.True_, Scalar("bool")),
        (np.array(True), Scalar("bool")),
        (torch.tensor(True), Scalar("bool")),
        (3, Scalar("int")),
        (np.uint8(3), Scalar("int")),
        (np.array(3), Scalar("int")),
        (torch.tensor(3), Scalar("int")),
        (0.5, Scalar("float")),
        (np.float32(0.5), Scalar("float")),
        (np.float64(0.5), Scalar("float")),
        (torch.tensor(0.5), Scalar("float")),
        ("text", Scalar("str")),
        (np.str_("x"), Scalar("str")),
        (datetime.datetime(2024, 1, 1), Scalar("datetime")),
        (np.datetime64("2024-01-01"), Scalar("datetime")),
        ([1, 2], Scalar("json")),
        ((1, 2), Scalar("json")),
        ({"a": 1}, Scalar("json")),
    ],
)
def test_infer(value: Any, field: Field) -> None:
    found = infer(value)
    assert found == field
    found.check(value)
    assert field_from_doc(found.to_doc()) == found


def test_paths(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").write_bytes(png())
    assert infer(tmp_path / "a") == Image()
    (tmp_path / "b").write_bytes(b"words")
    with pytest.raises(SchemaError, match="JPEG or PNG"):
        infer(tmp_path / "b")


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1, 2},
        1j,
        lambda: 0,
        np.array([object()]),
        np.array(["a"]),
        np.zeros(1, "i4,f4"),
        datetime.date(2024, 1, 1),
        [object()],
        2**70,
    ],
)
def test_what_cannot_be_stored(value: object) -> None:
    with pytest.raises(SchemaError, match="expected"):
        infer(value)


@pytest.mark.parametrize(
    "doc", [{}, {"kind": "mesh"}, {"kind": "array"}, {"kind": "array", "dtype": "object"}, {"kind": None}]
)
def test_schema_documents_that_are_malformed(doc: dict[str, Any]) -> None:
    with pytest.raises(SchemaError):
        field_from_doc(doc)


def test_reprs_read_like_code() -> None:
    assert repr(Array("uint8", (2, None))) == "Array('uint8', (2, None))"
    assert repr(Scalar("int", optional=True)) == "Scalar('int', optional=True)"
    assert repr(Image()) == "Image()"
    assert repr(Image(dtype="uint16")) == "Image(dtype='uint16')"


def test_a_file_of_sound_says_how_to_declare_it(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.wav").write_bytes(sound(20))
    with pytest.raises(SchemaError, match=r"a\.wav is no image: declare the field .* as Audio\(\)"):
        infer(tmp_path / "a.wav")
    (tmp_path / "a.txt").write_bytes(b"text")
    with pytest.raises(SchemaError, match="JPEG or PNG"):
        infer(tmp_path / "a.txt")
