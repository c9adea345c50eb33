"""The index of sequence numbers: plain, and exchanged where an earlier version has made a unique one."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pymongo
import pytest
from pymongo import IndexModel
from pymongo.errors import OperationFailure

from tensordb_data import StorageError, TensorDB
from tensordb_data.warehouse.collection_indexes import SEQUENCE, UNIQUE

KEYS = [("_tdb.p", 1), ("dataset", 1), ("_tdb.s", 1)]


def sequence_indexes(db: TensorDB) -> dict[str, bool]:
    """The indexes of sequence numbers, and whether they are unique."""
    found = db.database["data"].index_information()
    return {name: bool(index.get("unique")) for name, index in found.items() if index["key"] == KEYS}


def write(db: TensorDB, low: int, n: int = 20) -> None:
    with db.data.writer("d") as writer:
        writer.add_many(x=np.arange(low, low + n, dtype=np.float32).reshape(n, 1), label=np.arange(low, low + n))


def read(db: TensorDB) -> list[int]:
    stream = db.data.find({"dataset": "d"}).stream(batch_size=7, passes=1)
    return [int(label) for batch in stream for label in batch["label"]]


@pytest.fixture
def old(mongo_uri: str, db: TensorDB) -> str:
    """A warehouse with the unique index."""
    write(db, 0)
    db.database["data"].drop_index(SEQUENCE)
    db.database["data"].create_indexes([IndexModel(KEYS, unique=True)])
    return mongo_uri


def test_a_new_warehouse_has_a_plain_one(db: TensorDB) -> None:
    write(db, 0)
    assert sequence_indexes(db) == {SEQUENCE: False}


def test_an_existing_one_is_exchanged_by_who_opens_it_to_write(old: str, db: TensorDB) -> None:
    with TensorDB(old, read_only=True) as reader:
        assert read(reader) == list(range(20)) and sequence_indexes(db) == {UNIQUE: True}
        with TensorDB(old) as writer:
            write(writer, 20)
            assert sequence_indexes(db) == {SEQUENCE: False}
        assert read(reader) == list(range(40))  # of a reader that was open meanwhile
    db.database["data"].create_indexes([IndexModel(KEYS, unique=True)])  # a program of an earlier version
    assert sequence_indexes(db) == {SEQUENCE: False, UNIQUE: True}
    write(db, 40)
    assert read(db) == list(range(60)) and db.data.find({"dataset": "d"}, sort=[("label", -1)]).first()["label"] == 59
    with TensorDB(old) as writer:
        write(writer, 60)
    assert sequence_indexes(db) == {SEQUENCE: False} and read(db) == list(range(80))


def test_writers_go_on_while_others_exchange_it(old: str, db: TensorDB) -> None:
    go = threading.Event()

    def writes() -> None:
        with db.data.writer("d") as writer:
            for i in range(20, 60):
                writer.add(x=np.float32([i]), label=i)
                writer.flush()
                go.set()

    def reads() -> None:
        with TensorDB(old) as reader:
            read(reader)

    thread = threading.Thread(target=writes)
    thread.start()
    go.wait()
    opened = [threading.Thread(target=reads) for _ in range(3)]
    for each in opened:
        each.start()
    for each in [thread, *opened]:
        each.join()
    assert read(db) == list(range(60)) and sequence_indexes(db) == {SEQUENCE: False}


@pytest.mark.parametrize("refused", ["create", "drop"])
def test_the_unique_one_is_good_enough(old: str, db: TensorDB, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    """Where the server takes no second one of the same fields, or does not let the first one go."""
    create = pymongo.collection.Collection.create_indexes

    def some(self: Any, indexes: list[IndexModel], **more: Any) -> Any:
        if any(index.document["name"] == SEQUENCE for index in indexes):
            raise OperationFailure("Index already exists with a different name", 85)
        return create(self, indexes, **more)

    def none(self: Any, index: Any, **more: Any) -> Any:
        raise OperationFailure("index is in use", 12586)

    if refused == "create":
        monkeypatch.setattr(pymongo.collection.Collection, "create_indexes", some)
    else:
        monkeypatch.setattr(pymongo.collection.Collection, "drop_index", none)
    with TensorDB(old) as opened:
        write(opened, 20)
        assert read(opened) == list(range(40))
        assert UNIQUE in sequence_indexes(db) and len(db.database["data"].index_information()) >= 5


def test_a_counter_that_was_set_back_is_noticed_before_numbers_are_given_twice(db: TensorDB, mongo_uri: str) -> None:
    write(db, 0)
    db.database["datasets"].update_one({"_id.d": "d"}, {"$set": {"seq": 4}})
    with TensorDB(mongo_uri) as opened:
        for each in (db, opened):
            with pytest.raises(StorageError, match=r"its counter says 4.*fsck --repair"):
                write(each, 20)
        for repair in opened.repairs():
            repair.mend()
        write(opened, 20)
        assert read(opened) == list(range(40)) and opened.fsck().findings == []
    db.database["datasets"].delete_one({"_id.d": "d"})  # the next writer makes it anew
    with pytest.raises(StorageError, match="its counter says 0"):
        write(db, 40)
    assert db.database["data"].count_documents({}) == 40


def test_fsck_finds_numbers_that_are_there_twice(db: TensorDB) -> None:
    write(db, 0)
    one = db.database["data"].find_one({"label": 7})
    assert one is not None
    db.database["data"].update_one({"label": 9}, {"$set": {"_tdb.s": one["_tdb"]["s"]}})
    (finding,) = db.fsck().findings
    assert finding.kind == "damaged document" and "which another sample has too" in finding.what
    assert f"found {one['_tdb']['s']}" in finding.what and "dataset 'd'" in finding.where
