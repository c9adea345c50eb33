"""TensorDB: roots, projects, processes, mongomock."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import mongomock
import numpy as np
import pymongo
import pytest
from pymongo.errors import NetworkTimeout

from tensordb_data import ConnectError, QueryError, StorageError, TensorDB, UnsupportedError
from tensordb_data.common.sizes import parse_size
from tensordb_data.warehouse import catalog


def fill(db: TensorDB, dataset: str = "d", n: int = 3) -> None:
    with db.data.writer(dataset) as writer:
        writer.add_many(x=np.arange(4 * n, dtype=np.uint8).reshape(n, 4), label=np.arange(n))


def test_roots_are_recorded_and_used_again(mongo_uri: str, tmp_path: Path) -> None:
    with TensorDB(mongo_uri, blobs=tmp_path / "one") as db:
        fill(db, "a")
    with TensorDB(mongo_uri, blobs=tmp_path / "one") as db:
        fill(db, "b")
        assert db.database["warehouse"].find_one()["roots"] == [  # type: ignore[index]
            {"id": 0, "url": (tmp_path / "one").as_uri()}
        ]
    with TensorDB(mongo_uri, blobs=f"file://{tmp_path}/two/", roots=[tmp_path / "one"]) as db:
        fill(db, "c")
        assert (
            len(list(db.warehouse.blobs.store(0).list(""))) == 2
            and len(list(db.warehouse.blobs.store(1).list(""))) == 1
        )
        assert all(sample["x"].shape == (4,) for sample in db.data.find())
    with TensorDB(mongo_uri, blobs=f"file://{tmp_path}/two") as db:
        assert [root["id"] for root in db.warehouse.blobs.roots] == [1, 0]


def test_a_server_begins_with_gridfs(mongo_uri: str) -> None:
    with TensorDB(mongo_uri) as db:
        fill(db)
        assert db.warehouse.blobs.roots == [{"id": 0, "url": "gridfs://"}]
        assert db.data.find().first()["x"].tolist() == [0, 1, 2, 3]


def test_a_folder_can_move_with_its_blobs(warehouse_dir: Path) -> None:
    with TensorDB(warehouse_dir / "w") as db:
        fill(db)
        assert db.warehouse.blobs.roots == [{"id": 0, "url": "./blobs"}]
    shutil.move(warehouse_dir / "w", warehouse_dir / "v")
    with TensorDB(warehouse_dir / "v", blobs=warehouse_dir / "v" / "more") as db:
        assert db.data.find().count() == 3 and db.data.find().first()["x"].tolist() == [0, 1, 2, 3]
        assert db.warehouse.blobs.roots[0]["url"] == "./more"


@pytest.mark.parametrize(
    ("blobs", "says"),
    [
        ("s3://key:secret@bucket/prefix", "no credentials"),
        ("s3://bucket/prefix?token=secret", "no credentials"),
        ("http://host/x", "no store for http"),
        ("", "empty string"),
    ],
)
def test_blob_places_that_cannot_be_recorded(mongo_uri: str, blobs: str, says: str) -> None:
    with pytest.raises(StorageError, match=says) as caught:
        TensorDB(mongo_uri, blobs=blobs)
    assert "secret" not in str(caught.value)


def test_a_newer_format_is_refused(mongo_uri: str) -> None:
    with TensorDB(mongo_uri) as db:
        db.database["warehouse"].update_one({}, {"$set": {"format": 99}})
    with pytest.raises(ConnectError, match=r"format 99.*reads formats 1 and 2.*upgrade"):
        TensorDB(mongo_uri)


def test_projects_do_not_see_each_other(mongo_uri: str) -> None:
    with TensorDB(mongo_uri, project="a") as a, TensorDB(mongo_uri, studyID="b") as b:
        assert (a.project, b.project) == ("a", "b")
        fill(a, "d", 3)
        fill(b, "d", 5)
        for db in (a, b):
            for name in ("params", "logs", "jobs", "architectures"):
                db.database[name].insert_one({"name": db.project, "tags": [], "_tdb": {"p": db.project}})
        assert (a.data.find().count(), b.data.find().count()) == (3, 5)
        assert (len(a.data.find().all()), len(b.data.find().distinct("label"))) == (3, 5)
        assert a.warehouse.datasets.versions() == {"d": (3, 0)} and b.warehouse.datasets.versions(["d"]) == {
            "d": (5, 0)
        }
        assert b.data.find({"$or": [{}, {"label": {"$gte": 0}}]}).count() == 5
        assert b.data.find({"label": 4}).explain()["returned"] == 1
        assert a.data.find({"label": 4}).explain()["returned"] == 0
        for name in ("params", "logs", "jobs", "architectures"):
            assert getattr(a, name).find().distinct("name") == ["a"]
            assert getattr(b, name).find().delete(all=True) == 1
            assert getattr(a, name).find().count() == 1
        assert a.data.find().tag("x") == 3 and b.data.find({"tags": "x"}).count() == 0
        assert a.data.find().update({"$set": {"label": 9}}, all=True) == 3
        assert b.warehouse.datasets.versions() == {"d": (5, 0)}
        assert a.data.find().delete(all=True) == 3 and b.data.find().count() == 5
        with pytest.raises(QueryError, match="different warehouses or projects"):
            _ = a.data.find() & b.data.find()


def test_closing(mongo_uri: str) -> None:
    db = TensorDB(mongo_uri)
    db.close()
    db.close()
    with pytest.raises(ConnectError, match="closed"):
        db.data.find().count()
    given: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(mongo_uri)
    with TensorDB(client=given, db_name=given.get_default_database().name) as db:
        fill(db)
    assert given.get_default_database()["data"].count_documents({}) == 3
    given.close()


def test_nothing_stays_open_when_it_is_refused(mongo_uri: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(StorageError):
            TensorDB(mongo_uri, blobs="ftp://x")


def test_travels_to_other_processes(db: TensorDB) -> None:
    fill(db)
    again = pickle.loads(pickle.dumps(db))  # noqa: S301
    assert again == db and again.data.find().count() == 3
    selection = pickle.loads(pickle.dumps(db.data.find({"label": 2})))  # noqa: S301
    assert selection.first()["x"].tolist() == [8, 9, 10, 11]
    again.close()
    selection.db.close()


def _count(db: TensorDB, out: Any) -> None:
    out.put((db.data.find().count(), int(db.data.find().first()["x"].sum())))
    db.close()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_is_used_in_child_processes(db: TensorDB, method: str) -> None:
    fill(db)
    assert db.data.find().first()["x"].sum() == 6
    context = multiprocessing.get_context(method)
    out = context.Queue()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*multi-threaded.*")
        child = context.Process(target=_count, args=(db, out))
        child.start()
    assert out.get(timeout=60) == (3, 6)
    child.join(60)
    assert child.exitcode == 0
    assert db.data.find().count() == 3


def test_close_in_a_forked_child_leaves_the_parent_alone(warehouse_dir: Path) -> None:
    with TensorDB(warehouse_dir) as db:
        fill(db)
        pid = os.fork()
        if pid == 0:
            db.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert db.data.find().count() == 3


def test_a_given_client_does_not_travel(mongo_uri: str) -> None:
    given: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(mongo_uri)
    with given, TensorDB(client=given) as db, pytest.raises(UnsupportedError, match="give it an address"):
        pickle.dumps(db)


def test_mongomock_serves_the_documented_subset() -> None:
    client = mongomock.MongoClient()
    with TensorDB(client=client, blobs="memory://") as db:
        fill(db)
        assert db.data.find({"label": {"$in": [1, 2]}}).count() == 2
        assert db.data.find({"label": 2}).first()["x"].tolist() == [8, 9, 10, 11]
        assert db.data.find({"label": 2}).update({"$set": {"label": 7}}) == 1
        assert db.data.find({"label": 7}).tag("x") == 1 and db.data.find({"tags": "x"}).untag("x") == 1
        assert sorted(db.data.find().distinct("label")) == [0, 1, 7]
        assert db.data.find({}, sort=[("label", -1)], limit=2, fields=["label"]).head(1)[0]["label"] == 7
        assert db.data.find(limit=1).delete() == 1
        with pytest.raises(UnsupportedError, match="change streams"):
            db.data.find().watch()
        with pytest.raises(UnsupportedError, match="query planner"):
            db.data.find().explain()
    with TensorDB(client=client) as db:
        assert db.data.find().first()["x"].tolist() == [4, 5, 6, 7]
    with TensorDB(client=mongomock.MongoClient(), blobs="memory://") as db:
        assert db.data.find().count() == 0


def test_touch(db: TensorDB) -> None:
    fill(db)
    db.touch("d")
    assert db.warehouse.datasets.versions() == {"d": (3, 1)}


def test_cache_options_are_checked(mongo_uri: str, tmp_path: Path) -> None:
    with TensorDB(mongo_uri, blobs="gridfs://", cache=tmp_path, cache_bytes="200GB") as db:
        assert (db.cache, db.cache_bytes) == (tmp_path, 200 * 10**9)
    with pytest.raises(QueryError, match="200GB"):
        TensorDB(mongo_uri, cache_bytes="many")


def test_sizes() -> None:
    assert [parse_size(size, "cache_bytes") for size in (5, "5", "1.5kB", "2 GiB", "1tb", "3M")] == [
        5, 5, 1500, 2 * 2**30, 10**12, 3 * 10**6,
    ]  # fmt: skip
    for bad in (0, -1, True, "", "GB", "1XB", "-1GB", None, 1.5):
        with pytest.raises(ValueError, match="positive"):
            parse_size(bad, "cache_bytes")  # type: ignore[arg-type]


def test_a_reader_without_rights_to_write_can_open_a_ready_warehouse(db: TensorDB, monkeypatch: Any) -> None:
    from pymongo.collection import Collection
    from pymongo.errors import OperationFailure

    fill(db)

    def refused(*args: Any, **kwargs: Any) -> None:
        raise OperationFailure("not authorized", 13)

    monkeypatch.setattr(Collection, "create_indexes", refused)
    again = pickle.loads(pickle.dumps(db))  # noqa: S301
    from tensordb_data.warehouse.catalog import prepare

    assert prepare(again.database, "gridfs://", None)[0]["id"] == 0
    again.close()


def test_a_server_that_answers_too_late_is_one_error(mongo_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*args: object) -> None:
        raise NetworkTimeout("timed out")

    monkeypatch.setattr(catalog, "prepare", late)
    with pytest.raises(ConnectError, match=r"answered too late: timed out; .*timeoutMS"):
        TensorDB(f"{mongo_uri}&timeoutMS=1000")
