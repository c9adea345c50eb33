"""gc: nothing reachable goes, whatever it runs beside; what is unreachable goes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from bson import ObjectId
from typer.testing import CliRunner

from tensordb_data import Keep, StorageError, TensorDB
from tensordb_data.cli.main import app
from tensordb_data.housekeeping import gc as module
from tensordb_data.params.load import verify
from tensordb_data.samples import commit as commit_module
from tensordb_data.tensors import write as write_module
from tensordb_data.tensors.lease import Lease, LeaseLost


@pytest.fixture(autouse=True)
def _no_margin(monkeypatch):
    monkeypatch.setattr(module, "_MARGIN", module.dt.timedelta(0))


def dies(*args, **kwargs):
    raise KeyboardInterrupt


def objects(db):
    """Those of blobs."""
    return sorted(key for key, _ in db.warehouse.blobs.store().list() if not key.startswith("tombstones/"))


def save(db, value, run="r", step=1):
    return db.params.save({"w": np.full(1000, float(value) + 10), "shared": np.ones(1000)}, run=run, step=step)


def intact(db):
    return all(verify(db.warehouse, each._doc) for each in db.params.find())


def test_pruned_sets_lose_what_only_they_have(db):
    for step in range(1, 5):
        save(db, step, step=step)
    assert len(objects(db)) == 4
    db.params.prune("r", Keep(last=1))
    dry = db.gc(grace=0, dry_run=True)
    assert dry.marked == 6 and dry.removed == 0  # of each of three sets: a tensor and its structure
    done = db.gc(grace=0)
    assert (done.marked, done.removed, done.waiting) == (6, 6, 0)
    # the first object holds what is shared
    assert len(objects(db)) == 2 and done.objects == 2 and intact(db)
    again = db.gc(grace=0)
    assert (again.marked, again.removed, again.objects) == (0, 0, 0)
    assert not list(db.database["leases"].find())


def test_the_grace_period_is_waited_for(db):
    save(db, 1)
    db.params.find({"run": "r"}).delete()
    assert db.gc().marked == 0
    assert db.gc(grace=0, dry_run=True).marked == 3
    db.database["tensors"].update_many({}, {"$set": {"created": module.dt.datetime(2020, 1, 1)}})
    marked = db.gc()
    assert (marked.marked, marked.removed, marked.waiting) == (3, 0, 3)
    save(db, 1)  # stored again, since what is dying may be gone at any time
    assert db.gc().waiting == 1 and intact(db)  # the structure of the set that was deleted


@pytest.mark.parametrize("place", ["_missing", "_put", "_enter", "_states", "_live"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_beside_a_saver_that_shares_what_dies(db, monkeypatch, place, when):
    """The saver finds a tensor stored; gc marks and sweeps it, as often as it likes, at every step of the save."""
    save(db, 1)
    db.params.find({"run": "r"}).delete()
    real = getattr(write_module, place)

    def step(*args, **kwargs):
        if when == "before":
            db.gc(grace=0)
        found = real(*args, **kwargs)
        if when == "after":
            db.gc(grace=0)
            db.gc(grace=0)
        return found

    monkeypatch.setattr(write_module, place, step)
    save(db, 1)
    monkeypatch.undo()
    assert intact(db)
    db.gc(grace=0)
    db.gc(grace=0)
    assert intact(db) and db.params.find().count() == 1


def test_equal_bytes_of_two_projects(db, mongo_uri):
    """Both die, one is used again: the other goes alone."""
    with TensorDB(mongo_uri, project="other") as other:
        save(other, 1)
    save(db, 1)
    kept = db.database["params"].find_one({"_tdb.p": "default"})
    db.database["params"].delete_many({})
    db.database["tensors"].update_many({}, {"$set": {"state": "dying", "dying": module.dt.datetime(2020, 1, 1)}})
    db.database["params"].insert_one(kept)
    done = db.gc(grace=0)
    assert (done.revived, done.removed) == (3, 3) and intact(db) and len(objects(db)) == 1


@pytest.mark.parametrize("place", ["_missing", "_put", "_enter"])
def test_a_saver_taken_for_dead_begins_again(db, monkeypatch, place):
    save(db, 1)
    db.params.find({"run": "r"}).delete()
    real, once = getattr(write_module, place), []

    def step(*args, **kwargs):
        found = real(*args, **kwargs)
        if not once:
            once.append(1)
            db.database["leases"].update_many({}, {"$set": {"until": module.dt.datetime(2020, 1, 1)}})
            db.gc(grace=0)
            db.gc(grace=0)
        return found

    monkeypatch.setattr(write_module, place, step)
    save(db, 2)
    assert once and intact(db)
    monkeypatch.undo()
    db.gc(grace=0)
    assert intact(db) and len(objects(db)) == 1


def test_objects_of_a_saver_that_died(db, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(write_module, "_enter", dies)
        with pytest.raises(KeyboardInterrupt):
            save(db, 1)
    assert len(objects(db)) == 1
    assert db.gc(grace=0).objects == 1 and not objects(db)


def test_an_ended_lease_stays_ended(db):
    with Lease(db.warehouse, ObjectId()) as lease:
        lease.hold(None)
        db.database["leases"].update_many({}, {"$set": {"until": module.dt.datetime(2020, 1, 1)}})
        db.gc(grace=0)
        with pytest.raises(LeaseLost):
            lease.hold(None)


def test_segments_of_deleted_samples_and_dead_writers(db):
    for name in ("a", "b"):
        with db.data.writer(name) as writer:
            writer.add_many(x=np.zeros((10, 1000), "u1"))
    db.data.find({"dataset": "a"}).delete()
    done = db.gc(grace=0)
    assert done.removed == done.marked == 1 and len(objects(db)) == 1
    assert done.by == {"dataset a of default": done.removed_bytes}
    assert db.data.find({"dataset": "b"}).first()["x"].shape == (1000,)


def test_beside_a_commit(db, monkeypatch):
    """A writer that is slow between its segment and its transaction: dying is revived, gone is an error."""
    real = commit_module.put_segment

    def slow(*args):
        real(*args)
        db.database["segments"].update_many({"state": "writing"}, {"$set": {"created": module.dt.datetime(2020, 1, 1)}})
        db.gc()  # marks; the grace period keeps it

    monkeypatch.setattr(commit_module, "put_segment", slow)
    with db.data.writer("a") as writer:
        writer.add(x=np.zeros(1000, "u1"))
    db.gc(grace=0)
    assert db.data.find().first()["x"].shape == (1000,)

    def slower(*args):
        slow(*args)
        db.gc(grace=0)

    monkeypatch.setattr(commit_module, "put_segment", slower)
    with pytest.raises(StorageError, match="write these samples again"), db.data.writer("a") as writer:
        writer.add(x=np.ones(1000, "u1"))
    assert db.data.find().count() == 1


def test_beside_a_stream_whose_blobs_were_moved(db):
    with db.data.writer("a") as writer:
        ids = writer.add_many(x=np.arange(40, dtype="u1").repeat(1000).reshape(40, 1000), n=list(range(40)))
    stream = db.data.find({"dataset": "a"}).stream(batch_size=4, shuffle=True, seed=0, passes=1)
    batches = iter(stream)
    first = next(batches)
    db.data.find({"_id": {"$in": ids[:24]}}).delete()
    db.data.compact("a")
    assert db.gc(grace=0).removed == 1
    got = [first, *batches]
    for batch in got:
        assert (batch["x"][:, 0] == batch["n"]).all()
    assert set(range(24, 40)) <= {int(n) for batch in got for n in batch["n"]}


def test_bytes_by_run(db):
    for run, number in (("a", 2), ("b", 1)):
        for step in range(number):
            save(db, step + 10 * ord(run), run=run, step=step)
    db.params.save({"w": np.arange(3000.0)})
    db.params.find().delete(all=True)
    dry = db.gc(grace=0, dry_run=True)
    assert dry.by.keys() == {"run a of default", "run b of default", "parameters of default"}
    # the first to store what both have
    sizes = {doc["_id"]["h"]: doc["n"] for doc in db.database["tensors"].find({"run": "a"})}
    assert dry.by["run a of default"] == sum(sizes.values()) and len(sizes) == 5
    assert db.gc(grace=0).by == dry.by


def test_halves_of_objects(db, mongo_uri, monkeypatch):
    """A saver that is killed while it writes leaves a file that no document names."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dies)
        patch.setattr(Path, "unlink", dies)
        with pytest.raises(KeyboardInterrupt):
            save(db, 1)
    (half,) = Path(db.warehouse.blobs.store().folder).rglob(".put-*")
    assert db.gc(grace=0).temporary == 0 and half.exists()
    size, old = half.stat().st_size, half.stat().st_mtime - 1900
    os.utime(half, (old, old))
    assert [each.kind for each in db.fsck().findings] == ["leftover"]
    assert (db.gc(dry_run=True, grace=0).temporary_bytes, half.exists()) == (size, True)
    assert db.gc().temporary == 0  # an hour of grace
    shown = CliRunner().invoke(app, ["gc", "--grace", "0"], env={"TENSORDB": mongo_uri})
    assert "1 halves of objects" in shown.stdout and not half.exists()
    assert db.fsck().findings == []


def test_the_command(db, mongo_uri):
    save(db, 1)
    db.params.find({"run": "r"}).delete()
    shown = CliRunner().invoke(app, ["gc", "--dry-run", "--grace", "0"], env={"TENSORDB": mongo_uri})
    assert shown.exit_code == 0 and "3 blobs would be marked" in shown.stdout, shown.output
    done = CliRunner().invoke(app, ["gc", "--json", "--grace", "0"], env={"TENSORDB": mongo_uri})
    assert json.loads(done.stdout)["removed"] == 3 and not objects(db)


def collect_and_check(db):
    for step in (1, 2):
        save(db, step, step=step)
    with db.data.writer("a") as writer:
        ids = writer.add_many(x=np.ones((10, 1000), "u1"))
    with db.data.writer("b") as writer:
        writer.add_many(x=np.ones((10, 1000), "u1"))
    db.params.find({"step": 2}).delete()
    db.data.find({"_id": {"$in": ids}}).delete()
    assert db.fsck().findings == []
    done = db.gc(grace=0)
    assert (done.removed, done.objects, len(objects(db))) == (3, 2, 2)
    assert intact(db) and db.data.find({"dataset": "b"}).all()[0]["x"].all() and db.fsck().findings == []


@pytest.mark.parametrize("blobs", ["memory://", "gridfs://"])
def test_any_store(mongo_uri, blobs):
    with TensorDB(mongo_uri, blobs=blobs) as db:
        collect_and_check(db)


def test_s3(mongo_uri, s3):
    with TensorDB(mongo_uri, blobs=s3) as db:
        collect_and_check(db)


def test_samples_that_another_tool_has_moved_keep_their_segments(db, mongo_uri):
    """Into another dataset, into another project, and into one without a document."""
    for name in ("a", "b", "c", "d"):
        with db.data.writer(name) as writer:
            writer.add_many(x=np.arange(40, dtype=np.float32).reshape(10, 4), label=np.arange(10))
    data = db.database["data"]
    data.update_many({"dataset": "a"}, {"$set": {"dataset": "b"}, "$inc": {"_tdb.s": 100}})
    data.update_many({"dataset": "c"}, {"$set": {"_tdb.p": "other"}})
    data.update_many({"dataset": "d"}, {"$set": {"dataset": "nowhere"}})
    db.touch("b")
    for _ in range(2):
        done = db.gc(grace=0)
        assert (done.marked, done.removed) == (0, 0)
        for name in ("a", "b", "c", "d"):
            db.data.compact(name)
    assert db.database["segments"].count_documents({"state": "live"}) == 4
    assert sorted(sample["x"][0] for sample in db.data.find({"dataset": "b"})) == sorted([*range(0, 40, 4)] * 2)
    checked = db.fsck()
    assert checked.findings == []
    warned = sorted(text.split(":")[0] for text in checked.warnings)
    assert warned == [
        "10 blobs of samples in dataset 'b' of project 'default' are in segments of dataset 'a' of 'default'",
        "10 blobs of samples in dataset 'c' of project 'other' are in segments of dataset 'c' of 'default'",
        "10 blobs of samples in dataset 'nowhere' of project 'default' are in segments of dataset 'd' of 'default'",
        "10 samples are in dataset 'c' of project 'other', which has no schema",
        "10 samples are in dataset 'nowhere' of project 'default', which has no schema",
    ]
