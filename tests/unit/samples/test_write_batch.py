"""Batches: a sample alone and a sample in columns become the same documents and bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bson import ObjectId

from tensordb_data import Array, Scalar, SchemaError, Text
from tensordb_data.blobs.segments.read import read_segment
from tensordb_data.blobs.stores.memory import MemoryStore
from tensordb_data.samples import write_batch as batch_module
from tensordb_data.samples.columns import count_rows, encode_columns, make_ids
from tensordb_data.samples.inference import first_value
from tensordb_data.samples.write_batch import WriteBatch
from tensordb_data.schema.schema import Schema, check_names

SCHEMA = Schema(
    {
        "image": Array("uint8", (2, 2)),
        "any": Array("float32", optional=True),
        "text": Text(optional=True),
        "label": Scalar("int"),
        "score": Scalar("float", optional=True),
        "split": Scalar("str"),
    }
)


def columns(n: int) -> dict[str, Any]:
    return {
        "image": np.arange(4 * n, dtype=np.uint8).reshape(n, 2, 2),
        "any": [None if i % 3 == 0 else np.full(i, i, np.float32) for i in range(n)],
        "text": [f"text {i}" * i for i in range(n)],
        "label": np.arange(n, dtype=np.int32),
        "score": [None if i % 2 else i / 4 for i in range(n)],
        "split": "train",
    }


def stored(batch: WriteBatch) -> tuple[list[dict[str, Any]], list[bytes]]:
    packed = batch.builder.finish(batch.docs)
    store = MemoryStore()
    store.put("s", packed.parts)
    index, documents = read_segment(store, "s")
    data = bytes(store.get("s"))
    blobs = [data[o : o + n] for o, n in zip(index.offsets.tolist(), index.lengths.tolist(), strict=True)]
    for doc in documents.samples:
        for reference in doc["_tdb"]["b"].values():
            content = data[reference["o"] : reference["o"] + reference["n"]]
            assert content in blobs
            reference["o"] = content
            del reference["k"]
    return documents.samples, blobs


@pytest.mark.parametrize("level", [None, 3])
def test_columns_and_single_samples_are_the_same(level: int | None) -> None:
    n, ids = 7, make_ids(7, None)
    one, many = WriteBatch("p", "d", SCHEMA, level), WriteBatch("p", "d", SCHEMA, level)
    given = columns(n)
    many.add_columns(ids, [["t"]] * n, {k: c[slice(0, n)] for k, c in encode_columns("d", SCHEMA, n, given).items()})
    for i in range(n):
        one.add(ids[i], ["t"], {name: "train" if name == "split" else value[i] for name, value in given.items()})
    first, second = stored(one), stored(many)
    assert first[0] == second[0]
    assert sorted(first[1]) == sorted(second[1])
    assert [doc.get("score") for doc in first[0]] == [i / 4 if i % 2 == 0 else None for i in range(n)]
    assert all(("score" in doc) == (i % 2 == 0) for i, doc in enumerate(first[0]))


def test_a_faulty_sample_leaves_nothing_behind() -> None:
    batch = WriteBatch("p", "d", SCHEMA, None)
    before = batch.builder.nbytes
    with pytest.raises(SchemaError, match="dataset 'd', field 'split': expected str"):
        batch.add(ObjectId(), [], {"image": np.zeros((2, 2), np.uint8), "label": 1, "split": 3})
    assert len(batch) == 0 and batch.builder.nbytes == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image": np.zeros((5, 2, 3), np.uint8)}, "field 'image'.*expected a column of shape.*for shapes that vary"),
        ({"image": [np.zeros((2, 2), np.uint8)] * 4 + [np.zeros((2, 3), np.uint8)]}, "field 'image', row 4"),
        ({"image": np.zeros((5, 2, 2), np.float32)}, "field 'image'.*expected uint8"),
        ({"label": ["a"] * 5}, "field 'label', row 0: expected int"),
        ({"label": [1, 2, 3, 4, 2.5]}, "field 'label', row 4"),
        ({"label": 1.5}, "field 'label', row 0"),
        ({"label": np.full(5, 2**63, np.uint64)}, "64 bits"),
        ({"image": 3}, "expected a column of 5"),
        ({"image": b"abc"}, "expected a column, an array"),
        ({"split": {"a": 1}}, "expected a column"),
        ({"label": np.arange(4)}, "columns of one length"),
        ({"label": None}, "expected int, found NoneType"),
    ],
)
def test_faulty_columns_say_where(change: dict[str, Any], says: str) -> None:
    given = {**columns(5), **change}
    with pytest.raises(SchemaError, match=says):
        n = count_rows("d", given)
        encoded = encode_columns("d", SCHEMA, n, given)
        _ = [column[slice(0, n)] for column in encoded.values()]


def test_unknown_and_missing_fields() -> None:
    with pytest.raises(SchemaError, match=r"field 'mask'.*found a new one.*optional=True"):
        check_names("d", SCHEMA, ["image", "mask"])
    with pytest.raises(SchemaError, match=r"field 'label'.*found nothing"):
        WriteBatch("p", "d", SCHEMA, None).add(ObjectId(), [], {"image": np.zeros((2, 2), np.uint8), "split": "a"})


def test_columns_of_numbers_alone_are_no_columns() -> None:
    with pytest.raises(SchemaError, match="at least one column"):
        count_rows("d", {"a": 1, "b": "x"})
    assert [first_value(column) for column in (np.arange(3), "x", [None, b"", b"y"])] == [0, "x", b"y"]


def test_ids_must_be_object_ids() -> None:
    with pytest.raises(SchemaError, match=r"2 bson.ObjectId"):
        make_ids(2, ["a", "b"])


def test_a_document_over_16_mb_names_its_largest_field() -> None:
    batch = WriteBatch("p", "d", Schema({"text": Scalar("str"), "n": Scalar("int")}), None)
    with pytest.raises(SchemaError, match=r"field 'text': expected at most 16 MB.*17\.0 MB.*Text\(\)"):
        batch.add(ObjectId(), [], {"text": "x" * (17 * 2**20), "n": 1})
    assert len(batch) == 0


def test_room_follows_bytes_and_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "SEGMENT_BYTES", 400)
    monkeypatch.setattr(batch_module, "BATCH_SAMPLES", 1000)
    schema = Schema({"image": Array("uint8", (2, 2))})
    batch = WriteBatch("p", "d", schema, None)
    encoded = encode_columns("d", schema, 500, {"image": np.zeros((500, 2, 2), np.uint8)})
    room = batch.room(encoded)
    assert 90 <= room <= 100
    batch.add_columns(make_ids(room, None), [[]] * room, {"image": encoded["image"][slice(0, room)]})
    assert batch.full
