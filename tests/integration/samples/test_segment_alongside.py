"""The segment of a large commit is stored while its documents are inserted, and no sample is visible before that."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from bson import ObjectId

from tensordb_data import DuplicateError, StorageError, TensorDB
from tensordb_data.blobs.stores.local import FileStore
from tensordb_data.samples import commit as commit_module

N = commit_module.LIVE_SAMPLES + 100


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "tensordb-alongside"]


def columns(low: int = 0) -> dict[str, Any]:
    return {"x": np.arange(low, low + N, dtype=np.int64).reshape(N, 1), "label": np.arange(low, low + N)}


def check(db: TensorDB, n: int) -> None:
    assert [int(s["x"][0]) for s in db.data.find({"dataset": "d"})] == list(range(n))
    numbers = [doc["_tdb"]["s"] for doc in db.database["data"].find().sort("_tdb.s", 1)]
    assert numbers == list(range(1, n + 1)) and db.fsck().findings == []


@pytest.mark.parametrize("patience", [0.001, 60.0])
def test_no_sample_is_visible_before_its_bytes(db: TensorDB, monkeypatch: pytest.MonkeyPatch, patience: float) -> None:
    """Also where the store takes longer than a transaction can wait: then it is done again."""
    began, go, put = threading.Event(), threading.Event(), FileStore.put
    inserted = threading.Event()

    def slow(self: FileStore, *args: Any, **more: Any) -> None:
        began.set()
        go.wait(60)
        put(self, *args, **more)

    body = commit_module._Body.__call__

    def runs(self: Any, session: Any) -> Any:
        inserted.set()
        return body(self, session)

    monkeypatch.setattr(FileStore, "put", slow)
    monkeypatch.setattr(commit_module, "_PATIENCE", patience)
    monkeypatch.setattr(commit_module._Body, "__call__", runs)
    with db.data.writer("d") as writer:
        writer.add_many(**columns())
        thread = threading.Thread(target=writer.flush)
        thread.start()
        assert began.wait(60)
        assert inserted.wait(60)  # the transaction is under way, and the bytes are not there
        assert db.data.find().count() == 0
        go.set()
        thread.join()
        assert writer.written == N
        check(db, N)
        writer.add_many(**columns(N))
    check(db, 2 * N)


def test_a_store_that_fails_leaves_nothing(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: FileStore, *args: Any, **more: Any) -> None:
        raise StorageError("the disk is full")

    with db.data.writer("d") as writer:
        with monkeypatch.context() as patch:
            patch.setattr(FileStore, "put", fails)
            writer.add_many(**columns())
            with pytest.raises(StorageError, match="the disk is full"):
                writer.flush()
        assert db.data.find().count() == 0 and db.database["segments"].count_documents({}) == 0
        writer.add_many(**columns())
    check(db, N)


def test_a_commit_that_is_refused_leaves_no_segment(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits until its segment is stored, and removes it."""
    began, put = threading.Event(), FileStore.put
    insert = commit_module._Body._check_counter

    def slow(self: FileStore, *args: Any, **more: Any) -> None:
        assert began.wait(60)
        put(self, *args, **more)

    def starts(self: Any, *args: Any) -> None:
        insert(self, *args)
        began.set()

    ids = [ObjectId() for _ in range(N)]
    with db.data.writer("d") as writer:
        writer.add_many(_id=ids, **columns())
    before = {doc["_id"] for doc in db.database["segments"].find()}
    monkeypatch.setattr(FileStore, "put", slow)
    monkeypatch.setattr(commit_module._Body, "_check_counter", starts)
    with pytest.raises(DuplicateError, match=f"_id {ids[7]} exists"), db.data.writer("d") as writer:
        writer.add_many(_id=[*[ObjectId() for _ in range(N - 1)], ids[7]], **columns(N))
    assert {doc["_id"] for doc in db.database["segments"].find()} == before
    assert len(list(db.warehouse.blobs.store(0).list("segments/"))) == 1
    check(db, N)


def test_too_many_for_the_server_are_split_over_one_segment(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    from pymongo.errors import OperationFailure

    transaction, refused = type(db.warehouse.index).transaction, []

    def small(self: Any, body: Any) -> Any:
        if isinstance(body, commit_module._Body) and len(body._batch) > 300 and not refused.append(1):
            raise OperationFailure("transaction is too large and will not fit in the storage engine cache", 388)
        return transaction(self, body)

    monkeypatch.setattr(type(db.warehouse.index), "transaction", small)
    with db.data.writer("d") as writer:
        writer.add_many(**columns())
    assert refused and db.database["segments"].count_documents({}) == 1
    check(db, N)


@pytest.mark.parametrize("state", ["dying", "gone"])
def test_a_gc_that_meets_a_segment_on_its_way(db: TensorDB, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    """What it has not begun to remove lives; otherwise nothing is committed."""
    announce = commit_module.announce_segment

    def announced(*args: Any) -> Any:
        put = announce(*args)

        def then() -> None:
            put()
            db.database["segments"].update_one({"_id": args[2]}, {"$set": {"state": state}})

        return then

    monkeypatch.setattr(commit_module, "announce_segment", announced)
    writer = db.data.writer("d")
    writer.add_many(**columns())
    if state == "dying":
        writer.close()
        assert db.database["segments"].find_one({})["state"] == "live"  # type: ignore[index]
        check(db, N)
        return
    with pytest.raises(StorageError, match="write these samples again"):
        writer.close()
    assert db.data.find().count() == 0 and list(db.warehouse.blobs.store(0).list()) == []
