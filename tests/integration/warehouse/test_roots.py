"""Blob roots: a client uses those that its user has named, whatever the database says."""

from __future__ import annotations

import datetime as dt
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from bson import ObjectId
from typer.testing import CliRunner

from tensordb_data import StorageError, TensorDB
from tensordb_data.cli.main import app
from tensordb_data.warehouse.context import Warehouse
from tensordb_data.warehouse.user_config import write_roots

LONG_AGO = dt.datetime(2020, 1, 1)


def fill(db: TensorDB, dataset: str = "d") -> None:
    with db.data.writer(dataset) as writer:
        writer.add_many(x=np.arange(12, dtype=np.uint8).reshape(3, 4), label=np.arange(3))


def hostile_segment(db: TensorDB, root: int, key: str, **fields: object) -> None:
    segment = {
        "_id": ObjectId(), "p": "default", "dataset": "d", "root": root, "key": key, "bytes": 6, "index": [0, 0],
        "n": 1, "state": "dying", "dying": LONG_AGO, "created": LONG_AGO, **fields,
    }  # fmt: skip
    db.database["segments"].insert_one(segment)


def test_gc_deletes_nothing_in_a_root_that_only_the_database_names(
    db: TensorDB, mongo_uri: str, tmp_path: Path
) -> None:
    thesis, own = tmp_path / "thesis.txt", tmp_path / "segments" / str(ObjectId())
    own.parent.mkdir()
    for path in (thesis, own):
        path.write_text("mine")
    db.database["warehouse"].update_one({}, {"$push": {"roots": {"id": 7, "url": tmp_path.as_uri()}}})
    hostile_segment(db, 7, "thesis.txt")
    hostile_segment(db, 7, f"segments/{own.name}", _id=ObjectId(own.name))
    hostile_segment(db, 8, f"segments/{own.name}")  # a root that there is not
    report = db.gc(grace=0)
    assert (report.left, report.removed, report.objects) == (3, 0, 0)
    assert thesis.read_text() == own.read_text() == "mine"
    told = CliRunner().invoke(app, ["gc", "--db", mongo_uri, "--grace", "0"])
    assert told.exit_code == 0 and "3 unused blobs left alone: `tensordb fsck` names their places" in told.output
    db.database["segments"].update_many({}, {"$set": {"state": "live"}})
    findings = {(finding.kind, finding.where) for finding in db.fsck().findings}
    assert findings == {("foreign key", "'thesis.txt'"), ("unopened root", "root 7"), ("unopened root", "root 8")}


def test_a_root_is_read_once_it_is_opened(mongo_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with TensorDB(mongo_uri, blobs=one) as db:
        fill(db)
        db.params.save({"w": np.ones(3)}, run="r")
    with pytest.raises(StorageError, match=f"only in the database.*tensordb roots add NAME {one.as_uri()}"):
        TensorDB(mongo_uri)
    with TensorDB(mongo_uri, blobs=two) as db:
        with pytest.raises(StorageError, match=f"tensordb roots add NAME {one.as_uri()}"):
            _ = db.data.find().first()["x"]
        with pytest.raises(StorageError, match=f"tensordb roots add NAME {one.as_uri()}"):
            db.params.find().first().load()

    def usable(**options: object) -> TensorDB:
        opened = TensorDB(mongo_uri, **options)  # type: ignore[arg-type]
        assert opened.data.find().first()["x"].tolist() == [0, 1, 2, 3]
        assert opened.params.find().first().load()["w"].tolist() == [1, 1, 1]
        return opened

    # Opened for reading: nothing is written there, and nothing removed.
    monkeypatch.setenv("TENSORDB_ROOTS", f" {one}, ")
    usable().close()
    monkeypatch.delenv("TENSORDB_ROOTS")
    with usable(roots=[one]) as db:
        with pytest.raises(StorageError, match="opened for reading"):
            fill(db, "e")
        assert db.gc(grace=0).left == 0
        db.database["data"].delete_many({})
        assert db.gc(grace=0).left == 1
        assert len(list((one / "segments").iterdir())) == 1
    # What the user's config file names is the user's.
    with TensorDB(mongo_uri, blobs=one) as db:
        fill(db)
    write_roots({"mine": one.as_uri()})
    with usable() as db:
        fill(db, "e")
        assert db.gc(grace=0).left == 0
        assert len(list((one / "segments").iterdir())) == 2
    write_roots({})


def test_opened_roots_travel(mongo_uri: str, tmp_path: Path) -> None:
    one = tmp_path / "one"
    with TensorDB(mongo_uri, blobs=one) as db:
        fill(db)
    with TensorDB(mongo_uri, blobs=tmp_path / "two", roots=[one]) as db:
        fill(db, "e")
        pickled, ticket = pickle.dumps(db.data.find()), json.dumps(db.warehouse.to_json())
    again = pickle.loads(pickled)  # noqa: S301
    assert len([sample["x"] for sample in again]) == 6
    again.db.close()
    with TensorDB.over(Warehouse.from_json(json.loads(ticket))) as job:
        assert len([sample["x"] for sample in job.data.find()]) == 6
    shutil.move(one, tmp_path / "elsewhere")  # as on a machine that does not mount it
    with TensorDB.over(Warehouse.from_json(json.loads(ticket))) as job:
        with pytest.raises(StorageError, match=f"no folder {one}"):
            job.data.find().count()
    with pytest.raises(StorageError, match=f"no folder {one}"):
        TensorDB(mongo_uri, blobs=tmp_path / "two", roots=[one])


@pytest.mark.parametrize("url", ["./../out", "../out", "/outside", "file:///{}/../outside", "./a/../../outside"])
def test_a_root_that_leaves_the_folder(url: str, tmp_path: Path) -> None:
    from tensordb_data.warehouse.roots import OpenedRoots

    opened, folder = OpenedRoots(owned=("s3://b/p",)), tmp_path / "w"
    assert not opened.reads(url.format(folder), folder)
    for inside in ("./blobs", "blobs", "./a/../blobs", f"file://{folder}/blobs", "gridfs://", "memory://x", "s3://b/p"):
        assert opened.owns(inside, folder)
    for other in ("s3://b", "s3://b/p/q", "s3://b/p/", f"file://{folder}2/blobs", "gs://b/p", "./x\0"):
        assert not opened.reads(other, folder)
    assert not opened.reads("./blobs", None)


def test_roots_that_are_none(mongo_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong, says in (("s3://b", "list of folders"), (7, "list of folders"), (["ftp://x"], "roots=: no store")):
        with pytest.raises(StorageError, match=says):
            TensorDB(mongo_uri, roots=wrong)  # type: ignore[arg-type]
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "tensordb").mkdir()
    for text, says in (("no json", "expected JSON"), ("[]", "JSON object"), ('{"roots": [1]}', 'expected "roots"')):
        (tmp_path / "tensordb" / "config.json").write_text(text)
        with pytest.raises(StorageError, match=says):
            TensorDB(mongo_uri)
