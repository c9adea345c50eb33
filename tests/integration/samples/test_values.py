"""What becomes of values that are missing, members of Enums, and columns of pandas and Arrow."""

from __future__ import annotations

import datetime as dt
import enum
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from tensordb_data import Array, Scalar, TensorDB
from tensordb_data.errors import SchemaError

BIG = 2**53 + 1


class Split(str, enum.Enum):
    TRAIN = "train"
    VALID = "valid"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Colour(enum.Enum):
    RED = "red"


def _values(db: TensorDB, dataset: str, field: str) -> list[Any]:
    return [sample.get(field) for sample in db.data.find({"dataset": dataset})]


def test_a_field_gets_its_kind_from_the_first_value_that_tells(db: TensorDB) -> None:
    mask = np.ones((2, 2), np.uint8)
    with db.data.writer("one") as writer:
        writer.add(n=0, mask=None, at=pd.NaT)
        writer.add(n=1, mask=None)
        writer.add(n=2, mask=mask)
        writer.flush()
        writer.add(n=3, at=dt.datetime(2024, 1, 1))
        writer.add(n=4, mask=mask, at=pd.NaT)
    assert db.data.schema("one") == {
        "n": Scalar("int"), "mask": Array("uint8", (2, 2), optional=True), "at": Scalar("datetime", optional=True),
    }  # fmt: skip
    assert [n for n, found in enumerate(_values(db, "one", "mask")) if found is not None] == [2, 4]
    assert db.data.find({"dataset": "one", "mask": None}).count() == 3
    with db.data.writer("one") as again:  # the next process goes on
        again.add(n=5, mask=None, later=None)
        with pytest.raises(SchemaError, match=r"field 'mask'.*found .* of uint8"):
            again.add(n=6, mask=np.ones((3, 3), np.uint8))
        with pytest.raises(SchemaError, match=r"field 'typo'.*found a new one"):
            again.add(n=6, typo=1)
        again.add(n=6, later="x")
    assert _values(db, "one", "later") == [None] * 6 + ["x"]
    with db.data.writer("none") as writer, pytest.raises(SchemaError, match="no field with a value"):
        writer.add(a=None)
    with db.data.writer("empty") as writer:
        with pytest.raises(SchemaError, match=r"field 'b': empty bytes do not tell.*schema={'b': Bytes\(\)}"):
            writer.add(b=b"")
        writer.add_many(b=[b"", b"x"], t=pd.Series([None, "a"]))
    assert db.data.schema("empty")["t"] == Scalar("str", optional=True)  # type: ignore[index]
    assert _values(db, "empty", "b") == [b"", b"x"] and _values(db, "empty", "t") == [None, "a"]


def test_columns_of_tables_are_exact(db: TensorDB) -> None:
    when = pd.Timestamp("2024-01-02 03:04:05.006")
    columns: dict[str, tuple[Any, list[Any]]] = {
        "int64": (pd.Series([BIG, None], dtype="Int64"), [BIG, None]),
        "full": (pd.Series([1, BIG], dtype="Int64"), [1, BIG]),
        "bool": (pd.Series([True, None], dtype="boolean"), [True, None]),
        "text": (pd.Series([None, "a"]), [None, "a"]),
        "at": (pd.Series([pd.NaT, when]), [None, when.to_pydatetime()]),
        "numpy_at": (np.array(["NaT", "2024-01-02"], "datetime64[s]"), [None, dt.datetime(2024, 1, 2)]),
        "arrow": (pa.array([BIG, None]), [BIG, None]),
        "arrow_full": (pa.array([BIG, 2]), [BIG, 2]),
        "arrow_text": (pa.array(["a", "b"]), ["a", "b"]),
        "chunks": (pa.chunked_array([["a"], [None]]), ["a", None]),
        "plain": ([BIG, None], [BIG, None]),
        "float": (pd.Series([0.5, 1.0]), [0.5, 1.0]),
    }
    with db.data.writer("table") as writer:
        writer.add_many(**{name: column for name, (column, _) in columns.items()})
    for name, (_, expected) in columns.items():
        assert _values(db, "table", name) == expected, name
    with db.data.writer("floats", schema={"f": Scalar("float", optional=True)}) as writer:
        for column in ([BIG, None], np.array([1, BIG]), pa.array([BIG, None])):
            with pytest.raises(SchemaError, match=f"field 'f', row .: expected float, found int {BIG}.*digits"):
                writer.add_many(f=column)
        writer.add_many(f=pd.Series([1, None], dtype="Int64"))
        with pytest.raises(SchemaError, match="field 'f'"):
            writer.add(f=10**400)
    assert _values(db, "floats", "f") == [1.0, None]
    with db.data.writer("required", schema={"at": dt.datetime}) as writer:
        with pytest.raises(SchemaError, match=r"field 'at': expected datetime, found a missing value \(NaT\)"):
            writer.add(at=pd.NaT)


def test_no_boxes_are_zero_boxes(db: TensorDB) -> None:
    with db.data.writer("boxes", schema={"boxes": Array("float32", (None, 4)), "four": Array("int64", (4,))}) as writer:
        writer.add(boxes=[], four=[1, 2, 3, 4])
        writer.add_many(boxes=[[], [[1, 2, 3, 4]]], four=np.ones((2, 4), np.int64))
        with pytest.raises(SchemaError, match="field 'four'"):
            writer.add(boxes=[], four=[])
    assert [boxes.shape for boxes in _values(db, "boxes", "boxes")] == [(0, 4), (0, 4), (1, 4)]


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"])
def test_float8_tensors_keep_their_bits(name: str) -> None:
    tensor = torch.tensor([0.5, -2.0, 1.0]).to(getattr(torch, name))
    field = Array(name, (3,))
    assert bytes(field.encode(tensor)) == tensor.view(torch.uint8).numpy().tobytes()
    assert field.decode(field.encode(tensor)).astype(np.float32).tolist() == [0.5, -2.0, 1.0]


def test_members_of_enums_are_their_values_everywhere(db: TensorDB) -> None:
    with db.data.writer(Split.TRAIN) as writer:
        meta = {Split.TRAIN: [Level.LOW]}
        writer.add(tags=Split.TRAIN, split=Split.TRAIN, level=Level.HIGH, colour=Colour.RED, meta=meta)
        writer.add_many(
            tags=[[Split.VALID], []], split=[Split.VALID, Split.TRAIN], level=Level.LOW, colour=[Colour.RED] * 2,
            meta=[{}, {}],
        )  # fmt: skip
    stored = list(db.database["data"].find({"dataset": "train"}, sort=[("_tdb.s", 1)]))
    assert [(doc["split"], doc["level"], doc["colour"]) for doc in stored] == [
        ("train", 2, "red"), ("valid", 1, "red"), ("train", 1, "red"),
    ]  # fmt: skip
    assert stored[0]["meta"] == {"train": [1]} and [doc["tags"] for doc in stored] == [["train"], ["valid"], []]
    find = db.data.find
    assert find({"dataset": Split.TRAIN, "split": Split.TRAIN, "level": {"$in": [Level.HIGH]}}).count() == 1
    assert find({"colour": Colour.RED, "tags": Split.VALID}).update({"$set": {"split": Split.TRAIN}}) == 1
    assert find({"split": "train"}).count() == 3
    assert find({"level": Level.HIGH}).untag(Split.TRAIN) == 1
    assert find({"level": Level.HIGH}).first()["split"] == "train"
