from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import gridfs
import mongomock
import pymongo
import pytest
from bson import ObjectId
from pymongo import monitoring
from pymongo.database import Database

from tensordb_data.blobs.stores.gridfs import GridFSStore
from tensordb_data.blobs.stores.open import open_store
from tensordb_data.errors import StorageError
from tests.shelf import Shelf, shuffled
from tests.store_contract import StoreContract


class _Counter(monitoring.CommandListener):
    """Counts the commands that a client sends."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        self.names.append(event.command_name)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...


@pytest.fixture
def counter() -> _Counter:
    return _Counter()


@pytest.fixture
def database(mongo_uri: str, counter: _Counter) -> Iterator[Database[Any]]:
    with pymongo.MongoClient[dict[str, Any]](mongo_uri, event_listeners=[counter]) as client:
        yield client.get_default_database()


class TestGridFSStore(StoreContract):
    @pytest.fixture
    def store(self, database: Database[Any]) -> GridFSStore:
        return GridFSStore(database)


class TestGridFSStoreOnMongomock(StoreContract):
    @pytest.fixture
    def store(self) -> GridFSStore:
        return GridFSStore(mongomock.MongoClient().get_database("unit"))


def test_other_tools_can_read_and_write_it(database: Database[Any]) -> None:
    store, bucket = GridFSStore(database, "pictures"), gridfs.GridFSBucket(database, "pictures")
    data = os.urandom(600_000)
    store.put("segments/1", [data])
    assert bucket.open_download_stream_by_name("segments/1").read() == data
    bucket.upload_from_stream("segments/2", data, chunk_size_bytes=1000)
    assert bytes(store.get("segments/2")) == data
    assert bytes(store.get_ranges("segments/2", [999], [3])[0]) == data[999:1002]


def test_buckets_of_one_database_are_apart(database: Database[Any]) -> None:
    one, other = open_store("gridfs://", database=database), open_store("gridfs://other", database=database)
    one.put("k", [b"1"])
    assert (one.url, other.url) == ("gridfs://blobs", "gridfs://other")
    assert list(other.list()) == []


def test_many_ranges_are_one_query(database: Database[Any], counter: _Counter) -> None:
    store = GridFSStore(database)
    data = os.urandom(3_000_000)
    store.put("k", [data])
    store.get_ranges("k", [0], [1])
    counter.names.clear()
    offsets = list(range(0, 2_900_000, 40_000))
    found = store.get_ranges("k", offsets, [5000] * len(offsets))
    assert [bytes(each) for each in found] == [data[o : o + 5000] for o in offsets]
    assert counter.names == ["find"]


def test_an_object_that_was_replaced_by_another_client(database: Database[Any]) -> None:
    reader, writer = GridFSStore(database), GridFSStore(database)
    writer.put("k", [b"first"])
    assert bytes(reader.get_ranges("k", [0], [5])[0]) == b"first"
    writer.put("k", [b"other"])
    assert bytes(reader.get_ranges("k", [0], [5])[0]) == b"other"
    writer.delete("k")
    with pytest.raises(StorageError, match="expected a blob 'k'"):
        reader.get_ranges("k", [0], [5])


def test_an_interrupted_put_shows_nothing_and_leaves_nothing(
    database: Database[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = GridFSStore(database)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store._files, "insert_one", stop)
    with pytest.raises(KeyboardInterrupt):
        store.put("k", [bytes(600_000)])
    assert list(store.list()) == []
    assert database["blobs.chunks"].count_documents({}) == 0


def test_chunks_of_a_killed_put_go_when_they_are_old(database: Database[Any]) -> None:
    store = GridFSStore(database)
    store.put("k", [bytes(600_000)])
    old, fresh = (ObjectId.from_datetime(datetime.now(timezone.utc) - timedelta(hours=hours)) for hours in (25, 2))
    for id in (old, fresh):
        database["blobs.chunks"].insert_many([{"files_id": id, "n": n, "data": b"x"} for n in range(2)])
    assert store.sweep(1800, dry_run=True)[0] == store.sweep(1800)[0] == 1
    assert store.sweep(1800) == (0, 0)
    assert database["blobs.chunks"].count_documents({"files_id": fresh}) == 2
    assert len(store.get("k")) == 600_000


def test_lost_chunks_are_an_error(database: Database[Any]) -> None:
    store = GridFSStore(database)
    store.put("k", [bytes(600_000)])
    database["blobs.chunks"].delete_one({"n": 1})
    assert len(store.get_ranges("k", [0], [1000])[0]) == 1000
    with pytest.raises(StorageError, match="expected 3 chunks, found 2"):
        store.get("k")
    database["blobs.chunks"].update_one({"n": 0}, {"$set": {"data": b"short"}})
    with pytest.raises(StorageError, match="chunk 0"):
        store.get_ranges("k", [0], [1])


def test_a_server_that_is_not_there() -> None:
    with pymongo.MongoClient[dict[str, Any]]("mongodb://127.0.0.1:1", serverSelectionTimeoutMS=200) as client:
        store = GridFSStore(client.get_database("x"))
        for act in (
            lambda: store.put("k", [b"x"]),
            lambda: store.get("k"),
            lambda: list(store.list()),
            lambda: store.delete("k"),
        ):
            with pytest.raises(StorageError, match="gridfs://blobs") as caught:
                act()
            assert "\n" not in str(caught.value)


def test_a_reader_over_gridfs(database: Database[Any]) -> None:
    shelf = Shelf(GridFSStore(database))
    blobs = [bytes([i]) * (20_000 * i) for i in range(40)]
    docs = [doc for i in range(0, 40, 20) for doc in shelf.put(blobs[i : i + 20], 3 if i else None)]
    reader = shelf.reader()
    refs, order = shuffled(docs)
    for _ in range(2):
        assert [bytes(blob) for blob in reader.read(refs)] == [blobs[i] for i in order]
    reader.close()
