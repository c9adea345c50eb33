"""Rebuild: an index from the blob store alone, and what it says it could not know."""

from __future__ import annotations

import json

import numpy as np
import pytest
from bson import ObjectId
from typer.testing import CliRunner

from tensordb_data import Keep, StorageError, TensorDB, UnsupportedError
from tensordb_data.cli.main import app
from tensordb_data.housekeeping import deletion_log as housekeeping_log
from tensordb_data.housekeeping import rebuild
from tensordb_data.samples import compact
from tensordb_data.tensors import write as write_module
from tensordb_data.warehouse import deletion_log

KEPT = [n for n in range(20) if n != 10]


def image(n):
    return np.full(500, n, "u1")


@pytest.fixture
def written(db, mongo_uri):
    """Two flushes, a later optional field, a deletion, a label that changed, a compaction of live samples."""
    for part in (range(10), range(10, 20)):
        with db.data.writer("a") as writer:
            ids = writer.add_many(x=np.stack([image(n) for n in part]), n=list(part), label=[0] * 10)
    db.data.find({"n": 19}).update({"$set": {"label": 5}})
    db.data.find({"_id": ids[0]}).delete()
    with db.data.writer("live", live=True) as writer:
        writer.add_many(x=np.stack([image(n) for n in range(5)]), n=list(range(5)))
    db.data.compact("live")
    with TensorDB(mongo_uri, project="other") as other, other.data.writer("b") as writer:
        writer.add(x=image(1))
    return db


def lose(db):
    """The index is gone; the store is not."""
    for name in db.database.list_collection_names():
        if name != "warehouse":
            db.database[name].delete_many({})


def read(db, dataset):
    return {row["n"]: row["x"][0] for row in db.data.find({"dataset": dataset})}


def test_samples_come_back(written):
    lose(written)
    report = written.rebuild()
    assert report.datasets == {"a": 19, "live": 5} and report.segments == 3 and report.skipped == []
    assert report.projects == ["other"] and any("deletions" in text for text in report.unknown)
    assert report.deleted == 1 and read(written, "a") == {n: n for n in KEPT}
    assert read(written, "live") == {n: n for n in range(5)}
    assert [row["n"] for row in written.data.find({"dataset": "a"})] == KEPT
    assert {row["label"] for row in written.data.find({"dataset": "a"})} == {0}
    assert [finding for finding in written.fsck().findings if finding.kind != "unknown object"] == []
    with written.data.writer("a") as writer:
        writer.add(x=image(99), n=99, label=1)
    batches = list(written.data.find({"dataset": "a"}).stream(batch_size=50, passes=1))
    assert sum(len(batch["n"]) for batch in batches) == 20


def test_stopped_and_called_again(written, monkeypatch):
    from tensordb_data.housekeeping import rebuild as module

    lose(written)
    real, calls = module.read_segment, []

    def dies(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "read_segment", dies)
        written.rebuild()
    assert written.rebuild().samples == 24
    assert read(written, "a") == {n: n for n in KEPT}
    with pytest.raises(UnsupportedError, match="index is not lost"):
        written.rebuild()


def test_a_damaged_segment_is_named(written):
    lose(written)
    store = written.warehouse.blobs.store()
    first = min(key for key, _ in store.list("segments/"))
    path = store.local_path(first)
    path.write_bytes(path.read_bytes()[:-3])
    report = written.rebuild()
    assert report.datasets == {"a": 9, "live": 5} and first in report.skipped[0]


def test_the_command(written, mongo_uri):
    def run(*more):
        return CliRunner().invoke(app, ["fsck", "--rebuild", *more], env={"TENSORDB": mongo_uri})

    refused = run()
    assert refused.exit_code == 1 and "index is not lost" in refused.stderr
    lose(written)
    done = run("--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["samples"] == 24, done.output


# --- deletions --------------------------------------------------------------------------------------------------------


def numbers(db, dataset="a"):
    return sorted(row["n"] for row in db.data.find({"dataset": dataset}))


def again(db, times=2):
    """Lost and rebuilt, and once more: what a rebuild knows it still knows afterwards."""
    for _ in range(times):
        lose(db)
        report = db.rebuild()
        db.gc(grace=0)
    return report


def add(db, numbers, dataset="a", **options):
    with db.data.writer(dataset, **options) as writer:
        return writer.add_many(x=np.stack([image(n) for n in numbers]), n=list(numbers))


def test_deleted_samples_stay_deleted(db, monkeypatch):
    monkeypatch.setattr(deletion_log, "CHUNK", 3)
    add(db, range(10))
    add(db, range(10, 20))
    add(db, range(5), "live", live=True)
    assert db.data.find({"n": {"$gte": 3, "$lt": 12}, "dataset": "a"}).delete() == 9
    assert db.data.find({"dataset": "a"}, limit=1).delete() == 1
    db.data.compact("live")
    assert db.data.find({"dataset": "live", "n": {"$lt": 4}}).delete() == 4
    lose(db)
    assert db.rebuild().deleted == 10 + 4
    db.data.compact("live")  # moves the one that is left, and the gc takes the old segment
    assert again(db).deleted == 10
    assert numbers(db) == [1, 2, *range(12, 20)] and numbers(db, "live") == [4]
    assert db.fsck().findings == []


@pytest.mark.parametrize(
    ("segment", "before"),
    [
        ("00000005aaaaaaaaaa000002", False),  # one process, counted
        ("00000005aaaaaaaaaa000000", True),
        ("00000005bbbbbbbbbb000009", True),  # another process in the same second
        ("000000060000000000000000", False),
        ("00000004ffffffffffffffff", True),
    ],
)
def test_what_came_before_a_deletion(segment, before):
    assert rebuild.came_before(ObjectId(segment), ObjectId("00000005aaaaaaaaaa000001")) is before


def test_a_sample_that_is_written_again_lives(db):
    ids = add(db, range(4))
    assert db.data.find({"n": {"$lt": 2}}).delete() == 2
    with db.data.writer("a") as writer:
        writer.add(x=image(7), n=7, _id=ids[0])
    again(db)
    assert numbers(db) == [2, 3, 7]
    assert db.data.find({"_id": ids[0]}).delete() == 1
    again(db)
    assert numbers(db) == [2, 3]


def test_a_sample_that_is_deleted_while_a_compaction_copies_it(db, monkeypatch):
    add(db, range(4), live=True)
    real = compact.put_segment

    def put(*args):
        db.data.find({"n": 1}).delete()
        real(*args)  # it is in there

    with monkeypatch.context() as patch:
        patch.setattr(compact, "put_segment", put)
        patch.setattr(compact, "ObjectId", lambda: ObjectId("f" * 24))  # later than the deletion, by its clock
        db.data.compact("a")
    again(db)
    assert numbers(db) == [0, 2, 3]


def test_what_was_edited_meanwhile_is_not_remembered_as_deleted(db, monkeypatch):
    add(db, range(4))
    real = deletion_log._write

    def slow(*args):
        found = real(*args)
        db.database["data"].update_many({"n": 1}, {"$set": {"n": 100}})
        return found

    with monkeypatch.context() as patch:
        patch.setattr(deletion_log, "_write", slow)
        assert db.data.find({"n": {"$lt": 3}}).delete() == 2
    assert numbers(db) == [3, 100]
    assert len(list(db.warehouse.blobs.store(0).list("tombstones/"))) == 1
    again(db)
    assert numbers(db) == [1, 3]  # as it was first written


def test_nothing_is_deleted_that_cannot_be_remembered(db, monkeypatch):
    add(db, range(4))

    def fails(*args, **kwargs):
        raise StorageError("no space left")

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="no space left"):
        patch.setattr(type(db.warehouse.blobs.store(0)), "put", fails)
        db.data.find({"n": 1}).delete()
    assert numbers(db) == [0, 1, 2, 3] and db.database["tombstones"].count_documents({}) == 0


def test_tombstones_go_with_the_last_segment(db):
    add(db, range(4))
    add(db, range(4), "b")
    for n in range(4):
        db.data.find({"n": n, "dataset": "a"}).delete()
    db.data.find({"n": 0, "dataset": "b"}).delete()
    assert len(list(db.warehouse.blobs.store(0).list("tombstones/"))) == 5 and db.fsck().findings == []
    db.gc(grace=0)
    assert len(list(db.warehouse.blobs.store(0).list("tombstones/"))) == 1
    assert db.fsck().findings == []


def test_many_tombstones_become_one(db, monkeypatch):
    monkeypatch.setattr(housekeeping_log, "MANY", 4)
    add(db, range(10))
    for n in range(9):
        db.data.find({"n": n}).delete()
    for _ in range(2):
        db.gc(grace=0)
    assert len(list(db.warehouse.blobs.store(0).list("tombstones/"))) == 3  # two of four, and one
    assert db.fsck().findings == []
    again(db)
    assert numbers(db) == [9]


def test_a_damaged_tombstone_is_named(db):
    add(db, range(4))
    db.data.find({"n": 1}).delete()
    ((key, _),) = db.warehouse.blobs.store(0).list("tombstones/")
    path = db.warehouse.blobs.store(0).local_path(key)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert [found.kind for found in db.fsck().findings] == ["damaged object"]
    lose(db)
    report = db.rebuild()
    assert numbers(db) == [0, 1, 2, 3] and key in report.skipped[0] and "may be back" in report.skipped[0]


# --- parameter sets ---------------------------------------------------------------------------------------------------


def save(db, step, run="r", **more):
    state = {"own": np.full(1000, 10.0 + step), "shared": np.ones(1000), "zeros": np.zeros(5000), "small": [step, 0.5]}
    return db.params.save(state, run=run, step=step, **more)


def known(db):
    """All that the index says of sets, but for what a rebuild numbers anew."""
    docs = list(db.database["params"].find({}, {"_tdb.s": 0}).sort("_id", 1))
    return [{**doc, "_tdb": {**doc["_tdb"], "tensors": sorted(doc["_tdb"]["tensors"])}} for doc in docs]


def test_parameter_sets_come_back(db):
    first = save(db, 1, val_acc=0.5, note="a", tags=["x"])
    save(db, 2, val_acc=float("nan"), parent=first)
    save(db, 3, "other", best=True, parts=[1, 2])
    db.params.save([np.ones(1000), None])
    before = known(db)
    lose(db)
    report = db.rebuild()
    assert (report.sets, report.runs, report.skipped) == (4, {"run r": 2, "run other": 1, "no run": 1}, [])
    assert repr(known(db)) == repr(before)
    assert [each.step for each in db.params.find({"run": "r"}, sort=[("step", 1)])] == [1, 2]
    for each in db.params.find({"step": {"$gte": 1}}):
        state = each.load()
        assert (state["own"] == 10 + each.step).all() and state["small"] == [each.step, 0.5]
    assert db.fsck().findings == []
    save(db, 4)
    assert db.gc(grace=0).removed == 0 and db.search("x")
    db.params.find({"run": {"$ne": "nobody"}}).delete()
    db.gc(grace=0)
    assert list(db.warehouse.blobs.store(0).list()) == []


def test_deleted_sets_stay_deleted(db):
    """Though their bytes are still there: before a gc, and after one, in an object that others need."""
    for step in range(1, 6):
        save(db, step)
    db.params.prune("r", Keep(last=2))
    db.params.find({"step": 4}).delete()
    again(db)
    assert [each.step for each in db.params.find({"run": "r"})] == [5]
    assert len(list(db.warehouse.blobs.store(0).list("params/"))) == 2  # the first has what is shared
    assert len(list(db.warehouse.blobs.store(0).list("tombstones/"))) == 1  # of the prune: the first is among them
    again(db)
    assert [each.step for each in db.params.find({"run": "r"})] == [5]


def test_a_damaged_tensor_and_its_sets(db):
    save(db, 1)
    save(db, 2)
    row = db.database["tensors"].find_one({"_id.h": write_module.digest(memoryview(np.full(1000, 12.0).tobytes()))})
    path = db.warehouse.blobs.store(0).local_path(row["key"])
    data = bytearray(path.read_bytes())
    data[row["o"]] ^= 1
    path.write_bytes(data)
    other = db.warehouse.blobs.store(0).local_path(db.database["tensors"].find_one({"key": {"$ne": row["key"]}})["key"])
    lose(db)
    report = db.rebuild()
    assert [each.step for each in db.params.find({"run": "r"})] == [1]
    assert len(report.skipped) == 1 and "step 2" in report.skipped[0] and "model/own" in report.skipped[0]
    lose(db)
    other.write_bytes(b"nothing")
    assert len(db.rebuild().skipped) == 2 and db.params.find({"run": "r"}).count() == 0


def test_training_goes_on_after_a_rebuild(db):
    torch = pytest.importorskip("torch")
    from tensordb_data.torch import StepCheckpointer

    def train(steps):
        torch.manual_seed(0)
        model = torch.nn.Linear(40, 40)
        optimizer = torch.optim.AdamW(model.parameters())
        with StepCheckpointer(db, "t", model, optimizer, every=2) as checkpointer:
            start = checkpointer.restore()
            for _ in range(start, steps):
                optimizer.zero_grad()
                model(torch.randn(4, 40)).square().mean().backward()
                optimizer.step()
                checkpointer.step()
        return start, [p.detach().clone() for p in model.parameters()]

    train(4)
    lose(db)
    assert db.rebuild().runs == {"run t": 2}
    start, found = train(6)
    db.params.find({"run": "t"}).delete()
    assert start == 4 and all(map(torch.equal, found, train(6)[1]))


def test_numbers_that_are_there_twice_are_noticed(written, monkeypatch):
    lose(written)
    number = rebuild._Rebuild._number_samples

    def disturbed(self, dataset):
        last = number(self, dataset)
        if dataset == "a":
            written.database["data"].update_one({"dataset": "a", "_tdb.s": 4}, {"$set": {"_tdb.s": 3}})
        return last

    with monkeypatch.context() as patch:
        patch.setattr(rebuild._Rebuild, "_number_samples", disturbed)
        with pytest.raises(StorageError, match="several samples have the sequence number 3"):
            written.rebuild()
    assert written.rebuild().datasets == {"a": 19, "live": 5}
    found = [doc["_tdb"]["s"] for doc in written.database["data"].find({"dataset": "a"}).sort("_tdb.s")]
    assert found == list(range(1, 20))
