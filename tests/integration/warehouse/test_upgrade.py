"""A warehouse that version 0.1 has written: read as it is, and upgraded in one step, whatever is killed."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bson
import numpy as np
import pytest

from tensordb_data import ConnectError, TensorDB
from tensordb_data.schema.schema import MARK
from tensordb_data.warehouse.upgrade import STOP
from tests import warm
from tests.format1.make import unpack

EXPECTED: dict[str, Any] = {}


@pytest.fixture
def old(mongo_uri: str, warehouse_dir: Path) -> Iterator[str]:
    """The address of a warehouse of 0.1, whose blobs are in `blobs`, which this user has opened."""
    import pymongo

    with pymongo.MongoClient(mongo_uri) as client:
        mongo = client.get_default_database()
        EXPECTED.update(unpack(warehouse_dir, mongo))
        place = {"$set": {"roots": [{"id": 0, "url": f"file://{warehouse_dir.resolve()}/blobs"}]}}
        mongo["warehouse"].update_one({}, place)
    yield mongo_uri


def check(db: TensorDB) -> None:
    """All that 0.1 has written is there; its stream goes on where it was."""
    digits = db.data.find({"dataset": "digits"})
    assert digits.count() == EXPECTED["count"] and digits.first()["image"].shape == (6, 6)
    assert sorted(digits.distinct("label")) == [0, 1, 2, 3, 4, 50]
    assert [sample["x"].tolist() for sample in db.data.find({"dataset": "live"}, sort=[("label", 1)])] == [
        [3 * i, 3 * i + 1, 3 * i + 2] for i in range(4)
    ]
    stream = digits.stream(batch_size=8, shuffle=True, seed=3)
    batches = iter(stream)
    assert [shown(next(batches)) for _ in range(3)] == EXPECTED["before"]
    stream.close()
    stream = digits.stream(batch_size=8, shuffle=True, seed=3)
    stream.load_state_dict(EXPECTED["state"])
    batches = iter(stream)
    assert [shown(next(batches)) for _ in range(len(EXPECTED["after"]))] == EXPECTED["after"]
    stream.close()
    best = db.params.find({"run": "r"}, sort=[("step", -1)]).first()
    assert best["step"] == 20 and best.load()["w"].tolist() == [20] * 50
    assert db.logs.find({"run": "r"}).count() == db.jobs.find().count() == db.architectures.find().count() == 1
    assert {hit.kind for hit in db.search("digits")} == {"data"}
    assert db.fsck().findings == []


def shown(batch: Any) -> dict[str, Any]:
    return {"label": batch["label"].tolist(), "sum": int(np.asarray(batch["image"], np.int64).sum())}


def documents(uri: str) -> dict[str, list[bytes]]:
    """All that is in the database, but what streams agree on."""
    import pymongo

    with pymongo.MongoClient(uri) as client:
        mongo = client.get_default_database()
        names = sorted({*mongo.list_collection_names()} - {"passes"})
        found = {name: sorted(bson.encode(doc) for doc in mongo[name].find()) for name in names}
    return {name: docs for name, docs in found.items() if docs}


def test_read_only_changes_nothing(old: str) -> None:
    before = documents(old)
    with TensorDB(old, read_only=True) as db:
        check(db)
        assert db.database["warehouse"].find_one({})["format"] == 1
    assert documents(old) == before


def test_upgraded_once(old: str) -> None:
    """By who opens it first to write. Then everything goes on, also what 0.1 had begun."""
    with TensorDB(old) as db:
        check(db)
        upgraded = documents(old)
        with TensorDB(old, read_only=True) as other:
            check(other)
        assert documents(old) == upgraded
        assert db.database["warehouse"].find_one({})["format"] == 2
        with db.data.writer("digits") as writer:
            writer.add(image=np.zeros((6, 6), np.uint8), label=3, name="new")
        with db.data.writer("new") as writer:
            writer.add(label=1)
        assert all(MARK in doc["schema"] for doc in db.database["datasets"].find())
        assert list(db.data.schema("digits")) == ["image", "label", "name"]
        db.data.find({"dataset": "digits", "label": 50}).update({"$set": {"label": 5}})
        db.data.find({"dataset": "digits", "label": {"$lt": 2}}).delete()
        db.data.compact("digits")
        assert db.data.rename("digits", "figures") == db.data.find({"dataset": "figures"}).count()
        report = db.gc(grace=0)
        assert report.left == 0 and db.database["leases"].find_one({"_id": STOP}) is not None
        assert db.fsck().findings == []


def refusal(uri: str) -> tuple[str, str, str]:
    """What 0.1 meets: as it opens the warehouse, in a commit, and in a gc. `make.py refused` runs its own code."""
    import pymongo

    with pymongo.MongoClient(uri) as client:
        mongo = client.get_default_database()
        opened = mongo["warehouse"].find_one({"_id": "warehouse"})["format"]
        kinds = {part["kind"] for doc in mongo["datasets"].find() for part in (doc["schema"] or {}).values()}
        known = {"array", "image", "bytes", "text", "bool", "int", "float", "str", "datetime", "json"}
        roots = {at["root"] for doc in mongo["leases"].find({"state": "ended"}) for at in doc.get("objects", ())}
        places = {root["id"] for root in mongo["warehouse"].find_one({})["roots"]}
        return f"format {opened}", " ".join(sorted(kinds - known)), " ".join(map(str, roots - places))


def test_version_0_1_is_refused(old: str) -> None:
    """Also while it is connected: each commit reads a schema, and each gc the leases that have ended."""
    assert refusal(old) == ("format 1", "", "")
    TensorDB(old).close()
    assert refusal(old) == (
        "format 2", "of format 2", "of format 2 (written by a newer version: upgrade tensordb-data)"
    )  # fmt: skip


def end_transactions(uri: str) -> None:
    """Those of the dead, which would hold up the next one for some seconds."""
    import pymongo

    with pymongo.MongoClient(uri) as client:
        client.admin.command({"killAllSessions": []})


KILLED = """
import os, signal, sys
from pymongo.collection import Collection
from tensordb_data import TensorDB
from tensordb_data.warehouse import catalog, upgrade
at, count = int(sys.argv[2]), 0
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def step():
    global count
    count += 1
    if count == at:
        die()
real = upgrade._upgrade
class Stepping:
    def __init__(self, given):
        self._given = given
    def __getitem__(self, name):
        return Stepping(self._given[name])
    def __getattr__(self, name):
        found = getattr(self._given, name)
        def call(*args, **options):
            step()
            return found(*args, **options)
        return call
def stepped(mongo, session):
    global count
    count = 0  # it may run again
    real(Stepping(mongo), session)
    step()
upgrade._upgrade = stepped
done = upgrade.upgrade
def whole(mongo):
    done(mongo)
    die()
catalog.upgrade = whole
TensorDB(sys.argv[1])
"""


def test_killed_at_each_step(old: str) -> None:
    """Before and after each write of the upgrade, and after its end."""
    before = documents(old)
    for at in range(1, 6):
        done = warm.run([sys.executable, "-c", KILLED, old, str(at)], timeout=100)
        assert done.returncode == -signal.SIGKILL
        end_transactions(old)
        if at < 5:
            assert documents(old) == before
        else:
            assert refusal(old)[0] == "format 2"
    with TensorDB(old) as db:
        check(db)
    assert refusal(old)[1:] != ("", "")


def test_newer_and_unknown_formats(old: str) -> None:
    import pymongo

    with pymongo.MongoClient(old) as client:
        for format in (3, 0, None, "2"):
            client.get_default_database()["warehouse"].update_one({}, {"$set": {"format": format}})
            for read_only in (False, True):
                with pytest.raises(ConnectError, match="reads formats 1 and 2: upgrade tensordb-data"):
                    TensorDB(old, read_only=read_only)


def test_the_archive_is_small_and_plain() -> None:
    """What `make.py` writes holds documents and blobs, and no path that leads elsewhere."""
    import tarfile

    path = Path(__file__).parents[2] / "format1" / "warehouse.tar.xz"
    assert path.stat().st_size < 200_000
    with tarfile.open(path) as archive:
        assert all(member.isfile() and os.path.normpath(member.name) == member.name for member in archive)
        assert isinstance(json.loads(archive.extractfile("expected.json").read()), dict)  # type: ignore[union-attr]
