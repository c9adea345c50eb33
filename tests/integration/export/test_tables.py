"""Samples as bytes and as tables."""

from __future__ import annotations

import datetime as dt
import sys
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest

from tensordb_data import (
    Array,
    Bytes,
    Image,
    MissingExtraError,
    NotFoundError,
    QueryError,
    Scalar,
    SchemaError,
    TensorDB,
    Text,
)

NOON = dt.datetime(2026, 11, 30, 12, tzinfo=dt.timezone.utc)
SCHEMA: dict[str, Any] = {
    "image": Image("rgb"), "raw": Bytes(optional=True), "note": Text(optional=True), "grid": Array("int16", (2, 3)),
    "free": Array("float32", optional=True), "label": Scalar("int", optional=True), "ok": Scalar("bool", optional=True),
    "at": Scalar("datetime", optional=True), "meta": Scalar("json", optional=True),
}  # fmt: skip


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), np.uint8)
    return bytes(cv2.imencode(".png", pixels)[1])


def fill(db: TensorDB, live: bool = False) -> None:
    with db.data.writer("x", schema=SCHEMA, compression="zstd", live=live) as writer:
        writer.add(image=png(0), grid=np.arange(6, dtype=np.int16).reshape(2, 3), raw=b"a" * 999, note="größe",
                   label=2**60 + 1, ok=True, at=NOON, meta={"a": [1, NOON]}, tags=["b", "a"])  # fmt: skip
        writer.add(image=png(1), grid=np.ones((2, 3), np.int16), free=np.zeros((2, 2), np.float32))


@pytest.mark.parametrize("live", [False, True])
def test_encoded_bytes_are_those_that_were_given(db: TensorDB, live: bool) -> None:
    fill(db, live)
    first, second = db.data.find({"dataset": "x"})
    assert (first.encoded("image"), second.encoded("image")) == (png(0), png(1))
    assert (first.encoded("raw"), first.encoded("note")) == (b"a" * 999, "größe".encode())
    assert list(db.data.find().encoded("image")) == [png(0), png(1)]
    assert list(db.data.find().encoded("raw")) == [b"a" * 999, None]
    with pytest.raises(NotFoundError, match="'raw'"):
        second.encoded("raw")
    with pytest.raises(NotFoundError, match="'label'; its blobs: "):
        first.encoded("label")
    with pytest.raises(SchemaError, match="no encoded form"):
        first.encoded("grid")
    with pytest.raises(QueryError, match="no encoded form"):
        db.data.find().encoded("grid")
    with pytest.raises(QueryError, match="no field 'no'"):
        db.data.find().encoded("no")
    with pytest.raises(QueryError, match=r"expected an image.*found Scalar"):
        db.data.find().encoded("label")
    with pytest.raises(QueryError, match="only samples"):
        db.params.find().encoded("image")


def test_a_table_has_the_types_of_the_fields(db: TensorDB) -> None:
    fill(db)
    table = db.data.find().to_arrow(blobs=["image", "grid", "note"])
    assert table.column_names == ["_id", "dataset", "tags", "image", "note", "grid", "label", "ok", "at", "meta"]
    assert table["label"].to_pylist() == [2**60 + 1, None] and table["label"].type == pa.int64()
    assert table["at"].type == pa.timestamp("ms", tz="UTC") and table["at"].to_pylist() == [NOON, None]
    assert table["tags"].to_pylist() == [list(sample.tags) for sample in db.data.find()]
    assert table["_id"].to_pylist() == [str(sample.id) for sample in db.data.find()]
    assert table["image"].to_pylist() == [png(0), png(1)] and table["note"].to_pylist() == ["größe", None]
    assert table["grid"].to_pylist() == [[0, 1, 2, 3, 4, 5], [1] * 6]
    assert table["meta"].to_pylist() == ['{"a": [1, {"$date": "2026-11-30T12:00:00Z"}]}', None]
    assert db.data.find(fields=["label"]).to_arrow().column_names == ["_id", "dataset", "tags", "label"]
    assert db.data.find({"label": 5}).to_arrow().num_rows == 0


def test_a_frame_keeps_integers_where_values_are_missing(db: TensorDB) -> None:
    fill(db)
    frame = db.data.find().to_pandas()
    assert frame["label"].dtype.name == "Int64" and frame["label"][0] == 2**60 + 1
    assert frame["ok"].dtype.name == "boolean" and str(frame["at"].dtype) == "datetime64[ms, UTC]"


def test_what_a_table_cannot_do_is_refused(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(db)
    selection = db.data.find()
    for blobs, text in (("image", "a list"), (["no"], "no blob 'no'"), (["free"], "no fixed shape")):
        with pytest.raises(QueryError, match=text):
            selection.to_arrow(blobs=blobs)
    with pytest.raises(QueryError, match="only samples"):
        db.jobs.find().to_arrow()
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(MissingExtraError, match="pip install polars"):
        selection.to_polars()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"tensordb-data\[tables\]"):
        selection.to_arrow()


def test_datasets_that_differ_in_a_field_share_the_others(db: TensorDB) -> None:
    fill(db)
    with db.data.writer("y", schema={"image": Image("gray"), "label": Scalar("str")}) as writer:
        writer.add(image=png(2), label="x")
    assert list(db.data.find().encoded("image")) == [png(0), png(1), png(2)]
    table = db.data.find(fields=["ok", "image"]).to_arrow(blobs=["image"])
    assert table["ok"].to_pylist() == [True, None, None] and table["image"].to_pylist() == [png(0), png(1), png(2)]
    with pytest.raises(SchemaError, match="'label': expected one kind"):
        db.data.find().to_arrow()
    with pytest.raises(QueryError, match="no field 'zz'; the fields are at, free"):
        db.data.find(fields=["zz"]).to_arrow()
