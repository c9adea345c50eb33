"""Annotations in columns: values, and arrays that become blobs, of samples that exist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mongomock
import numpy as np
import pytest
import torch
from bson import ObjectId

from tensordb_data import Array, QueryError, Scalar, SchemaError, StorageError, TensorDB
from tensordb_data.samples.existing import write_columns as module
from tensordb_data.stream.plan import index_snapshot

SOURCE = "model:cnn-1@400"
N = 10


def fill(db: TensorDB, dataset: str = "d", n: int = N) -> list[ObjectId]:
    with db.data.writer(dataset) as writer:
        return writer.add_many(x=np.arange(2 * n, dtype=np.uint8).reshape(n, 2), label=np.arange(n))


def vectors(n: int = N, size: int = 3, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(n, size)).astype(np.float32)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, list])
def test_values_and_arrays_in_columns(db: TensorDB, kind: Any) -> None:
    ids, emb = fill(db), vectors()
    done = db.data.annotate_many(_id=ids[2:8], label=np.full(6, 7), score=[0.5] * 6, emb=kind(emb[2:8]), source=SOURCE)
    assert (done.changed, done.unknown) == (6, ())
    assert db.data.schema("d") == {
        "x": Array("uint8", (2,)), "label": Scalar("int"), "score": Scalar("float", optional=True),
        "emb": Array("float32", (3,), optional=True),
    }  # fmt: skip
    samples = db.data.find().all()
    assert [sample["label"] for sample in samples] == [0, 1, *[7] * 6, 8, 9]
    assert [row for row, sample in enumerate(samples) if "emb" in sample] == [*range(2, 8)]
    assert all((samples[row]["emb"] == emb[row]).all() for row in range(2, 8))
    assert all((sample["x"] == [2 * row, 2 * row + 1]).all() for row, sample in enumerate(samples))
    assert set(samples[3]["provenance"]) == {"label", "score", "emb"}
    has = {"emb": {"$exists": True}}
    assert db.data.find({"provenance.emb.source": SOURCE}).count() == 6 == db.data.find(has).count()
    near = db.data.find().similar(to=emb[3], field="emb", k=1)
    assert near[0].id == ids[3] and db.fsck().findings == []


def test_ids_as_text_in_any_order_and_over_datasets(db: TensorDB) -> None:
    first, second = fill(db), fill(db, "e")
    stranger = ObjectId()
    ids = [str(second[1]), first[5], stranger, str(first[2])]
    done = db.data.annotate_many(_id=ids, emb=vectors(4), name=["a", "b", "c", "d"], label=3, source=SOURCE)
    assert (done.changed, done.unknown) == (3, (stranger,))
    for id, row, name in ((second[1], 0, "a"), (first[5], 1, "b"), (first[2], 3, "d")):
        sample = db.data.find({"_id": id}).first()
        assert (sample["emb"] == vectors(4)[row]).all() and (sample["name"], sample["label"]) == (name, 3)
    assert db.search("b")[0].id == first[5]
    assert db.data.annotate_many(_id=[], label=[], source=SOURCE).changed == 0
    assert db.data.annotate_many(_id=[stranger], emb=vectors(1), source=SOURCE).unknown == (stranger,)


def test_a_table_of_arrow(db: TensorDB) -> None:
    pa = pytest.importorskip("pyarrow")
    ids = fill(db)
    table = pa.table({"_id": [str(id) for id in ids], "note": pa.array([None, *"abcdefghi"])})
    assert db.data.annotate_many(_id=table["_id"], note=table["note"], source=SOURCE).changed == N
    assert [sample.get("note") for sample in db.data.find()] == [None, *"abcdefghi"]


def test_shapes_that_vary_none_and_again(db: TensorDB) -> None:
    ids = fill(db)
    db.data.schema("d").evolve(boxes=Array("int32", (None, 4), optional=True), note=Scalar("str", optional=True))  # type: ignore[union-attr]
    boxes = [np.full((row, 4), row, np.int32) for row in range(N)]
    assert db.data.annotate_many(_id=ids, boxes=boxes, note="x", source=SOURCE).changed == N
    assert [sample["boxes"].shape for sample in db.data.find()] == [(row, 4) for row in range(N)]
    some: list[Any] = [None if row % 2 else box + 1 for row, box in enumerate(boxes)]
    for _ in range(2):  # a task that is run again
        db.data.annotate_many(_id=ids, boxes=some, note=None, source="again")
        found = db.data.find().all()
        assert [sample.get("boxes") is None for sample in found] == [bool(row % 2) for row in range(N)]
        assert all((found[row]["boxes"] == row + 1).all() for row in range(0, N, 2)) and "note" not in found[0]
    assert db.fsck().findings == []


def test_an_older_plan_reads_what_was(db: TensorDB) -> None:
    ids = fill(db)
    db.data.annotate_many(_id=ids, emb=vectors(), source="one")
    sel = db.data.find({"dataset": "d"}, fields=["emb"])
    stream, (part,) = sel.stream(batch_size=5, shuffle=True, seed=0, passes=1), sel.partitions(1)
    batches = iter(stream)
    first = next(batches)
    state = stream.state_dict()
    db.data.annotate_many(_id=ids, emb=vectors(seed=1), source="two")
    old = {row.tobytes() for row in vectors()}
    assert {row.tobytes() for batch in (first, next(batches)) for row in batch["emb"]} == old
    stream.close()
    again = sel.stream(batch_size=5, shuffle=True, seed=0, passes=1)
    again.load_state_dict(state)
    assert {row.tobytes() for row in next(iter(again))["emb"]} == old - {row.tobytes() for row in first["emb"]}
    again.close()
    assert {row.tobytes() for row in part.read()["emb"]} == old
    assert (sel.partitions(1)[0].read()["emb"] == vectors(seed=1)).all()
    db.data.compact("d")
    assert (next(iter(sel.stream(batch_size=N, passes=1)))["emb"] == vectors(seed=1)).all()


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"label": ["a"] * N}, "field 'label'.*expected int"),
        ({"label": [*range(N - 1), None]}, "field 'label'"),
        ({"label": range(N - 1)}, "expected 10 values, one for each _id, found 9"),
        ({"label": {1: 2}}, "expected a column"),
        ({"emb": np.ones(())}, "field 'emb'.*expected a column"),
        ({"emb": [np.zeros(3), *[np.zeros(4)] * (N - 1)]}, r"field 'emb', row 1: .*shape"),
        ({"x": np.zeros((N, 2), np.uint8)}, "a blob that every sample has"),
        ({"note": [None] * N}, "field 'note'"),
        ({"tags": [["a"]] * N}, "tags= takes"), ({"dataset": "e"}, "name is taken"),
        ({"provenance": 3}, "name is taken"), ({"a.b": [1] * N}, "must not"), ({}, "takes a column for each field"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_as_a_whole(db: TensorDB, columns: Any, says: str) -> None:
    ids = fill(db)
    before = db.database["data"].find().sort("_id", 1).to_list()
    with pytest.raises((QueryError, SchemaError), match=says):
        db.data.annotate_many(_id=ids, good=vectors(), **columns, source=SOURCE) if columns else db.data.annotate_many(
            _id=ids, source=SOURCE
        )
    assert db.database["data"].find().sort("_id", 1).to_list() == before
    assert db.database["segments"].count_documents({}) == 1


@pytest.mark.parametrize("ids", [3, "a" * 24, ["a"], [3], {"a": 1}])
def test_ids_that_are_none(db: TensorDB, ids: Any) -> None:
    fill(db)
    with pytest.raises(QueryError, match="_id"):
        db.data.annotate_many(_id=ids, label=[1], source=SOURCE)


def test_an_id_that_is_there_twice_and_a_wrong_source(db: TensorDB) -> None:
    ids = fill(db)
    with pytest.raises(QueryError, match=f"sample {ids[0]} is there twice"):
        db.data.annotate_many(_id=[*ids, str(ids[0])], label=3, source=SOURCE)
    with pytest.raises(QueryError, match="source="):
        db.data.annotate_many(_id=ids, label=3, source="")


def test_many_in_few_commands_and_seen_as_one(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 20)
    monkeypatch.setattr(index_snapshot, "PATIENCE", 0.1)
    ids = fill(db, n=50)
    sel = db.data.find({"dataset": "d"}, fields=["label", "score"])
    calls: list[int] = []
    change = module._Change.__call__

    def slow(self: Any, samples: Sequence[Any], session: Any) -> int:
        found = change(self, samples, session)
        if session is not None and len(calls) == 1:  # one step is in, another is not: a reader sees neither
            assert [sample.get("score") for sample in sel].count(1) == 20
            with TensorDB(db.address) as other:
                (batch,) = other.select(sel.query).stream(batch_size=50, shuffle=True, passes=1, fields=["label"])
                assert sorted(batch["label"].tolist()) == list(range(50))
        calls.append(len(samples))
        return found

    monkeypatch.setattr(module._Change, "__call__", slow)
    done = db.data.annotate_many(_id=ids, label=100, score=1, emb=vectors(50), source=SOURCE)
    assert done.changed == 50 and calls == [20, 20, 10]
    assert db.data.find({"label": 100}).count() == 50 == db.data.find({"emb": {"$exists": True}}).count()
    assert db.database["datasets"].find_one({})["open"] == []  # type: ignore[index]


def test_nothing_is_changed_if_the_store_fails(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 4)
    ids = fill(db)
    puts: list[str] = []
    put = module.put_segment

    def failing(*args: Any) -> None:
        puts.append(str(args[2]))
        if len(puts) == 2:
            raise StorageError("the disk is full")
        put(*args)

    monkeypatch.setattr(module, "put_segment", failing)
    with pytest.raises(StorageError, match="the disk is full"):
        db.data.annotate_many(_id=ids, label=99, emb=vectors(), source=SOURCE)
    assert not db.data.find({"label": 99}).count() and not db.data.find({"emb": {"$exists": True}}).count()
    assert db.database["segments"].count_documents({}) == 1 and db.fsck().findings == []


def test_a_segment_that_a_gc_has_removed(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = fill(db)
    put = module.put_segment

    def removed(*args: Any) -> None:
        put(*args)
        module.drop_segment(*args[:1], args[2])

    monkeypatch.setattr(module, "put_segment", removed)
    with pytest.raises(StorageError, match="a gc has removed new blobs"):
        db.data.annotate_many(_id=ids, label=99, emb=vectors(), source=SOURCE)
    assert not db.data.find({"label": 99}).count()


def test_deleted_and_compacted_meanwhile(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = fill(db)
    db.data.annotate_many(_id=ids, emb=vectors(), source="one")
    put = module.put_segment

    def meanwhile(*args: Any) -> None:
        put(*args)
        db.data.find({"_id": {"$in": ids[:6]}}).delete()
        db.data.compact("d")

    monkeypatch.setattr(module, "put_segment", meanwhile)
    assert db.data.annotate_many(_id=ids, emb=vectors(seed=1), source="two").changed == 4
    monkeypatch.undo()
    assert (next(iter(db.data.find(fields=["emb"]).stream(batch_size=4, passes=1)))["emb"] == vectors(seed=1)[6:]).all()
    db.gc(grace=0)
    db.gc(grace=0)
    assert db.fsck().findings == [] and len(db.data.find().all()) == 4


def test_a_rebuild_finds_the_new_values(db: TensorDB, mongo_uri: str, warehouse_dir: Any) -> None:
    ids = fill(db)
    db.data.annotate_many(_id=ids, emb=vectors(), label=5, source=SOURCE)
    before = {sample.id: (sample["label"], sample["x"].tolist(), sample["emb"].tolist()) for sample in db.data.find()}
    db.database.client.drop_database(db.database.name)
    with TensorDB(mongo_uri, blobs=f"file://{warehouse_dir}/blobs") as rebuilt:
        rebuilt.rebuild()
        after = {s.id: (s["label"], s["x"].tolist(), s["emb"].tolist()) for s in rebuilt.data.find()}
    assert after == before


def test_a_field_that_was_renamed(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = fill(db)
    put = module.put_segment

    def renamed(*args: Any) -> None:
        put(*args)
        db.data.schema("d").rename(label="target")  # type: ignore[union-attr]

    monkeypatch.setattr(module, "put_segment", renamed)
    with pytest.raises(SchemaError, match="renamed to 'target', so nothing was written"):
        db.data.annotate_many(_id=ids, emb=vectors(), label=5, source=SOURCE)
    assert not db.data.find({"emb": {"$exists": True}}).count()


def test_on_mongomock() -> None:
    with TensorDB(client=mongomock.MongoClient(), blobs="memory://") as db:
        ids = fill(db)
        assert db.data.annotate_many(_id=ids, emb=vectors(), label=3, source=SOURCE).changed == N
        assert all((sample["emb"] == row).all() for sample, row in zip(db.data.find(), vectors(), strict=True))
