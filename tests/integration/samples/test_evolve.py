"""A schema that is widened: samples of before and after, plans, and writers that are open meanwhile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tensordb_data import Array, Scalar, TensorDB
from tensordb_data.errors import NotFoundError, SchemaError
from tensordb_data.schema.schema import Schema

FIELDS = {"n": int, "opt": Scalar("int", optional=True), "x": Array("uint8", (2, 3)), "rows": Array("int64", (None, 2))}


def _add(writer: Any, n: Any, shape: tuple[int, ...] = (2, 3), rows: int = 1, **more: Any) -> None:
    writer.add(n=n, x=np.full(shape, int(n), np.uint8), rows=np.full((rows, 2), int(n)), **more)


def _shapes(db: TensorDB) -> dict[float, tuple[int, ...]]:
    found = {sample["n"]: sample["x"] for sample in db.data.find({"dataset": "d", "x": {"$exists": True}})}
    assert all((x == int(n)).all() for n, x in found.items())
    return {n: x.shape for n, x in found.items()}


def test_a_schema_is_widened(db: TensorDB) -> None:
    assert db.data.schema("d") is None
    opened = db.data.writer("d", schema=FIELDS)
    _add(opened, 1)
    opened.flush()
    stream = db.data.find({"dataset": "d"}).stream(1, ["n"], shuffle=True, passes=1)
    assert [batch["n"].dtype for batch in stream] == [np.int64]
    _add(opened, 2, opt=3)  # pending, by the older schema
    stored = db.data.schema("d")
    assert stored is not None and stored == Schema.declared("d", FIELDS)
    wide = stored.evolve(
        n=float, opt=float, x=Array("uint8", optional=True), rows=Array("int64", (None, None)),
        mask=Array("bool", optional=True),
    )  # fmt: skip
    assert wide == db.data.schema("d") == {
        "n": Scalar("float"), "opt": Scalar("float", optional=True), "x": Array("uint8", optional=True),
        "rows": Array("int64", (None, None)), "mask": Array("bool", optional=True),
    }  # fmt: skip
    assert wide.evolve(n=float) == wide
    opened.flush()  # this writer takes the new schema over
    _add(opened, 3, (4, 4), mask=np.ones(2, np.bool_))
    opened.close()
    with db.data.writer("d", schema={**wide}) as writer:
        for n, shape in ((4, (2, 3)), (5, (3, 2)), (6, (6,)), (7, (0,)), (8, ())):
            _add(writer, n, shape)
        writer.add(n=9.5, rows=np.zeros((1, 5), np.int64))
    assert {type(doc["n"]) for doc in db.database["data"].find()} == {float}
    assert _shapes(db) == {
        1: (2, 3), 2: (2, 3), 3: (4, 4), 4: (2, 3), 5: (3, 2), 6: (6,), 7: (0,), 8: (),
    }  # fmt: skip
    stream = db.data.find({"dataset": "d"}).stream(4, ["n"], shuffle=True, passes=1)
    assert sorted(n for batch in stream for n in batch["n"].tolist()) == [1, 2, 3, 4, 5, 6, 7, 8, 9.5]
    with db.data.writer("other", schema={**wide, "x": Array("uint8", optional=True)}) as writer:
        _add(writer, 10, (2, 3))
    both = db.data.find({"x": {"$exists": True}}).stream(9, ["n", "x"], passes=1)
    assert {n: x.shape for batch in both for n, x in zip(batch["n"], batch["x"], strict=True)} == {
        **_shapes(db), 10: (2, 3),
    }  # fmt: skip
    assert db.fsck().findings == []


def test_values_of_the_shape_that_was_fixed_are_told_from_others() -> None:
    free = Array("uint8", was=(5, 4))  # 20 bytes
    for shape in ((5, 4), (4, 5), (11,), (10,), (20,), (1, 3), (3,), (0,), ()):  # 11 has a head of 9 bytes, 1 x 3 of 17
        value = np.arange(int(np.prod(shape)), dtype=np.uint8).reshape(shape)
        found = free.decode(free.encode(value))
        assert found.shape == shape and (found == value).all()
    old = Array("uint8", (5, 4))
    value = np.arange(20, dtype=np.uint8).reshape(5, 4)
    assert (free.decode(old.encode(value)) == value).all()


def test_what_would_narrow_a_schema_is_refused(db: TensorDB) -> None:
    with db.data.writer("d", schema=FIELDS) as writer:
        _add(writer, 1)
        with pytest.raises(SchemaError, match=r"field 'n': .*found float 1.5; to take floats.*evolve\(.*'float'"):
            _add(writer, 1.5)
        with pytest.raises(SchemaError, match=r"field 'n': .*let samples lack it.*evolve\(.*optional=True"):
            writer.add(x=np.zeros((2, 3), np.uint8), rows=[[1, 2]])
    schema = db.data.schema("d")
    assert schema is not None
    for name, field, says in (
        ("opt", Scalar("int"), "does not hold every value"),
        ("n", str, "does not hold every value"),
        ("x", Array("uint8", (3, 3)), "does not hold"),
        ("x", Array("uint16"), "does not hold"),
        ("rows", Array("int64", (4, 2)), "does not hold"),
        ("mask", Array("uint8"), "declare it with optional=True"),
    ):
        with pytest.raises(SchemaError, match=f"dataset 'd', field '{name}': .*{says}"):
            schema.evolve(**{name: field})
    db.database["data"].update_one({}, {"$set": {"n": 2**53 + 1}})
    with pytest.raises(SchemaError, match=r"field 'n', sample .*digits; the schema stays as it is"):
        schema.evolve(n=float)
    assert db.data.schema("d") == schema
    db.data.writer("none").close()
    with pytest.raises(NotFoundError, match="'d' has no schema yet"):
        db.database["datasets"].delete_many({})
        schema.evolve(n=Scalar("json"))
