"""Each write of a state, from each state, and between the look and the write of another."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from bson import ObjectId

from tensordb_data import StorageError
from tensordb_data.housekeeping import gc, segment_usage
from tensordb_data.params.load import verify
from tensordb_data.samples import commit, compact
from tensordb_data.samples.mutations import Mutation
from tensordb_data.schema.schema import Schema

LONG_AGO = dt.datetime(2020, 1, 1)
STATES = ("writing", "live", "dying", "gone")


@pytest.fixture(autouse=True)
def _no_margin(monkeypatch):
    monkeypatch.setattr(gc, "_MARGIN", dt.timedelta(0))


def enter(db, state, id=None):
    """Puts a segment into a state, as whoever writes that state does."""
    change = {"state": state, **({"dying": LONG_AGO} if state in ("dying", "gone") else {})}
    db.database["segments"].update_one({} if id is None else {"_id": id}, {"$set": change})


def segment(db):
    return db.database["segments"].find_one({})


def write(db, n=4, **options):
    with db.data.writer("d", **options) as writer:
        return writer.add_many(x=np.arange(n, dtype="u1").repeat(500).reshape(n, 500), n=list(range(n)))


def whole(db, count):
    rows = db.data.find({"dataset": "d"}).all()
    return len(rows) == count and all((row["x"] == row["n"]).all() for row in rows) and db.fsck().findings == []


@pytest.mark.parametrize("state", STATES)
def test_a_commit(db, monkeypatch, state):
    """What a gc has not begun to remove lives; otherwise nothing is committed."""
    real = commit.put_segment

    def put(*args):
        real(*args)
        enter(db, state)

    monkeypatch.setattr(commit, "put_segment", put)
    if state != "gone":
        write(db)
        assert segment(db)["state"] == "live" and "dying" not in segment(db) and whole(db, 4)
        return
    with pytest.raises(StorageError, match="write these samples again"):
        write(db)
    assert db.data.find({"dataset": "d"}).count() == 0 and (segment(db) or {"state": "gone"})["state"] == "gone"
    db.gc(grace=0)
    assert list(db.warehouse.blobs.store().list()) == [] and segment(db) is None


@pytest.mark.parametrize("state", STATES)
def test_a_compaction(db, monkeypatch, state):
    """Samples move only to a segment that nobody has begun to remove."""
    write(db, live=True)
    real = compact.put_segment

    def put(*args):
        real(*args)
        enter(db, state)

    monkeypatch.setattr(compact, "put_segment", put)
    done = db.data.compact("d")
    moved = state in ("writing", "live")
    assert done.samples == (4 if moved else 0) and db.database["data"].count_documents(
        {"_tdb.b.x.k": {"$type": 7}}
    ) == (4 if moved else 0)
    db.gc(grace=0)
    assert whole(db, 4)


def between(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> None:
    """Once, when a collection has looked at all samples, and before it writes a state."""
    real, once = segment_usage._used, []

    def used(*args):
        found = list(real(*args))
        if not once:
            once.append(1)
            act()
        return iter(found)

    monkeypatch.setattr(segment_usage, "_used", used)


@pytest.mark.parametrize("moment", ["look", "mark"])
def test_a_compaction_after_the_look_of_a_mark(db, monkeypatch, moment):
    """It would have to stop, and leave its samples where they are, if its segment began to die meanwhile."""
    write(db)
    old, new = segment(db), ObjectId()
    db.warehouse.blobs.store(0).put(f"segments/{new}", [bytes(db.warehouse.blobs.store(0).get(old["key"]))])
    db.database["segments"].insert_one({**old, "_id": new, "key": f"segments/{new}", "v": 1, "created": LONG_AGO})
    moves = [({"_id": doc["_id"]}, {"$set": {"_tdb.b.x.k": new}}) for doc in db.database["data"].find({})]

    def move():
        with Mutation(db.warehouse, "compact", ["d"], alone=False, stamps=True) as mutation:
            mover = compact.Mover(db.warehouse, "d", Schema({}), compact.Compacted(), mutation)
            assert mutation.step(moves, partial(mover._replace, new)) == len(moves)

    if moment == "look":
        between(monkeypatch, move)
    else:
        real = gc._Collection._mark

        def mark(self, name, docs, *more):
            if docs:
                move()
            real(self, name, docs, *more)

        monkeypatch.setattr(gc._Collection, "_mark", mark)
    report = db.gc(grace=0)
    monkeypatch.undo()
    assert (report.marked, report.removed) == (0, 0)
    assert db.database["segments"].find_one({"_id": new})["state"] == "live" and whole(db, 4)
    assert db.gc(grace=0).removed == 1 and whole(db, 4)  # the old one


def test_a_commit_after_the_look_of_a_sweep(db, monkeypatch):
    """A flush that was taken for dead commits at the last moment."""
    write(db)
    rows = list(db.database["data"].find({}))
    db.database["data"].delete_many({})
    enter(db, "dying")

    def revive():
        with db.database.client.start_session() as session, session.start_transaction():
            db.database["data"].insert_many(rows, session=session)
            lives = {"$set": {"state": "live"}, "$unset": {"dying": ""}}
            assert db.database["segments"].update_one({"state": "dying"}, lives, session=session).matched_count

    between(monkeypatch, revive)
    assert db.gc(grace=0).removed == 0
    assert segment(db)["state"] == "live" and whole(db, 4)


@pytest.mark.parametrize("state", ["live", "dying"])
def test_a_save_after_the_look_at_tensors(db, monkeypatch, state):
    """One that begins when gc has found its tensors unused."""
    save = lambda: db.params.save({"w": np.ones(1000)}, run="r")  # noqa: E731
    save()
    db.params.find({"run": "r"}).delete()
    if state == "dying":
        db.database["tensors"].update_many({}, {"$set": {"state": "dying", "dying": LONG_AGO}})
    real, once = gc._Collection._unused, []

    def unused(self, filter):
        for found in real(self, filter):
            if not once:
                once.append(save())
            yield found

    monkeypatch.setattr(gc._Collection, "_unused", unused)
    for _ in range(3):
        db.gc(grace=0)
        assert all(verify(db.warehouse, each._doc) for each in db.params.find()) and db.params.find().count() == 1
    assert once and {doc["state"] for doc in db.database["tensors"].find()} == {"live"} and db.fsck().findings == []


def test_many_segments_in_several_looks(db, monkeypatch):
    """Looks at few segments at a time find the same as one look at all of them."""
    for n in range(7):
        with db.data.writer("d" if n % 2 else "e") as writer:
            writer.add_many(x=np.full((2, 500), n, "u1"), n=[n, n])
    db.data.find({"n": {"$in": [1, 2, 6]}}).delete()
    monkeypatch.setattr(segment_usage, "SCAN", 2)
    monkeypatch.setattr(segment_usage, "BATCH", 1)
    assert db.gc(grace=0).removed == 3
    assert {row["n"] for row in db.data.find({"n": {"$gte": 0}})} == {0, 3, 4, 5} and db.fsck().findings == []
