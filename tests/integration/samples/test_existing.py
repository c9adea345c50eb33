"""Samples that are known by a key, and writers that leave out what exists: a task may be run again."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from bson import ObjectId

from tensordb_data import DuplicateError, QueryError, SchemaError, TensorDB
from tensordb_data.samples import commit as commit_module


def labels(db: TensorDB, dataset: str = "d") -> list[int]:
    return [sample["label"] for sample in db.data.find({"dataset": dataset})]


def numbers(db: TensorDB) -> list[int]:
    return [doc["_tdb"]["s"] for doc in db.database["data"].find().sort("_tdb.s", 1)]


@pytest.mark.parametrize("live", [False, True])
def test_a_task_that_is_run_again_adds_nothing_twice(db: TensorDB, live: bool) -> None:
    for high in (3, 3, 5):
        with db.data.writer("d", existing="skip", live=live) as writer:
            rows = np.arange(high)
            writer.add_many(_key=rows, label=rows, x=np.ones((high, 2), np.float32) * rows[:, None])
    assert (writer.written, writer.skipped, writer.pending) == (2, 3, 0)
    assert labels(db) == list(range(5)) and numbers(db) == [1, 2, 3, 4, 5]
    assert [float(sample["x"][0]) for sample in db.data.find({"dataset": "d"})] == list(range(5))
    assert db.fsck().findings == []


def test_within_one_commit_the_first_stays(db: TensorDB) -> None:
    with db.data.writer("d", existing="skip") as writer:
        first = writer.add(_key="a", label=1)
        assert writer.add(_key="a", label=2) == first != writer.add(_key="b", label=3)
    assert labels(db) == [1, 3] and (writer.written, writer.skipped) == (2, 1)
    assert db.data.find({"_id": first}).first()["label"] == 1


def test_a_key_is_the_one_of_an_ingest(db: TensorDB) -> None:
    db.data.ingest([{"vin": "a", "n": 1, "label": 1}, {"vin": "b", "n": 2, "label": 2}], "d", key="vin")
    db.data.ingest([{"vin": "a", "n": 1, "label": 1}], "pairs", key=["vin", "n"])
    with db.data.writer("d", existing="skip") as writer:
        writer.add_many(_key=["a", "c"], vin=["a", "c"], n=[1, 3], label=[7, 3])
    assert labels(db) == [1, 2, 3]
    with db.data.writer("pairs", existing="skip") as writer:
        writer.add(_key=("a", 1.0), vin="a", n=1, label=9)
        writer.add(_key=("a", 2), vin="a", n=2, label=2)
    assert labels(db, "pairs") == [1, 2]


def test_an_error_is_the_default(db: TensorDB) -> None:
    with db.data.writer("d") as writer:
        id = writer.add(_key="a", label=1)
    with pytest.raises(DuplicateError, match=f"_id {id} exists already"), db.data.writer("d") as writer:
        writer.add(_key="a", label=2)
    assert writer.written == 0 and labels(db) == [1]
    with pytest.raises(QueryError, match='existing is "error" or "skip"; found'):
        db.data.writer("d", existing="update")  # type: ignore[arg-type]


def test_what_another_dataset_has_is_no_reason_to_skip(db: TensorDB) -> None:
    with db.data.writer("other") as writer:
        id = writer.add(label=1)
    with (
        pytest.raises(DuplicateError, match="exists already in another dataset"),
        db.data.writer("d", existing="skip") as writer,
    ):
        writer.add(_id=id, label=2)
    with db.data.writer("d") as writer:
        assert writer.add(_key="k", label=1) != db.data.writer("other").add(_key="k", label=2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"_key": ["a"]}, "expected a list of 2 keys, found 1"),
        ({"_key": "ab"}, "expected a list of 2 keys, found str"),
        ({"_key": ["a", None]}, "_key, row 1: expected a value in each key column"),
        ({"_key": ["a", object()]}, "_key, row 1"),
        ({"_key": ["a", "b"], "_id": [ObjectId(), ObjectId()]}, "give one of them"),
    ],
)
def test_wrong_keys_are_refused(db: TensorDB, given: dict[str, Any], message: str) -> None:
    with db.data.writer("d") as writer:
        with pytest.raises(SchemaError, match=message):
            writer.add_many(label=[1, 2], **given)
        writer.add(label=1)
    assert labels(db) == [1]


def test_two_writers_at_once_add_each_sample_once(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one commits between the look before the segment is written and the transaction."""
    put = commit_module.put_segment

    def meanwhile(*args: Any) -> None:
        monkeypatch.setattr(commit_module, "put_segment", put)
        with db.data.writer("d", existing="skip") as other:
            other.add_many(_key=[1, 2], label=[1, 2], x=np.zeros((2, 2)))
        put(*args)

    monkeypatch.setattr(commit_module, "put_segment", meanwhile)
    with db.data.writer("d", existing="skip") as writer:
        writer.add_many(_key=[0, 1, 2, 3], label=[0, 1, 2, 3], x=np.ones((4, 2)))
    assert sorted(labels(db)) == [0, 1, 2, 3] and numbers(db) == [1, 2, 3, 4]
    assert (writer.written, writer.skipped) == (2, 2) and db.fsck().findings == []

    def write() -> None:
        with db.data.writer("d", existing="skip") as one:
            one.add_many(_key=np.arange(4, 40), label=np.arange(4, 40), x=np.zeros((36, 2)))

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(labels(db)) == list(range(40)) and numbers(db) == list(range(1, 41))
