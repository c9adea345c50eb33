"""Renaming and dropping datasets: beside writers and readers, and killed at any step."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable
from typing import Any

import mongomock
import numpy as np
import pymongo
import pytest
from pymongo import monitoring

from tensordb_data import DuplicateError, NotFoundError, QueryError, SchemaError, TensorDB
from tensordb_data.samples import rename as module


def fill(db: TensorDB, dataset: str = "old", n: int = 30) -> None:
    with db.data.writer(dataset) as writer:
        writer.add_many(x=np.arange(4 * n, dtype=np.float32).reshape(n, 4), label=np.arange(n), name=["abc"] * n)


def values(db: TensorDB, dataset: str) -> list[tuple[int, float]]:
    return [(sample["label"], float(sample["x"][0])) for sample in db.data.find({"dataset": dataset})]


EXPECTED = [(i, 4.0 * i) for i in range(30)]


class Killed(BaseException):
    pass


class Killer(monitoring.CommandListener):
    """Stops a process before one of its commands. The server notices, and aborts its transaction."""

    def __init__(self) -> None:
        self.left = -1

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if event.command_name in ("abortTransaction", "endSessions", "killCursors") or self.left < 0:
            return
        if self.left == 0:
            raise Killed
        self.left -= 1

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        pass

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        pass


def killed_at_each_step(uri: str, db: TensorDB, call: Callable[[TensorDB], Any]) -> int:
    """Stop a call before each of its commands in turn, and call it again; returns how often it was stopped."""
    killer, stops = Killer(), 0
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(uri, event_listeners=[killer])
    with client, TensorDB(client=client, db_name=db.database.name, blobs=db.warehouse.blobs.roots[0]["url"]) as doomed:
        while True:
            killer.left = stops
            try:
                call(doomed)
            except Killed:
                stops += 1
            else:
                return stops
            finally:
                killer.left = -1


def test_rename(db: TensorDB) -> None:
    fill(db)
    fill(db, "other")
    before = {sample.id for sample in db.data.find({"dataset": "old"})}
    stream = db.data.find({"dataset": "old"}).stream(10, shuffle=True, seed=1, passes=1)
    batches = iter(stream)
    next(batches)
    assert db.data.rename("old", "new") == 30
    assert len(list(batches)) == 2  # the pass in progress goes on
    assert values(db, "new") == values(db, "other") == EXPECTED and values(db, "old") == []
    assert {sample.id for sample in db.data.find({"dataset": "new"})} == before
    assert db.data.rename("old", "new") == 0  # as a script that was killed at its end would
    assert db.data.schema("new") == db.data.schema("other") and db.data.schema("old") is None
    assert sorted(hit.name for hit in db.search("abc")) == ["new", "other"]
    with db.data.writer("new") as writer:
        writer.add(x=np.zeros(4, np.float32), label=30, name="abc")
    assert db.data.find({"dataset": "new"}).count() == 31
    checked = db.fsck()
    assert (checked.findings, checked.warnings) == ([], [])
    fill(db)  # the old name is free
    assert values(db, "old") == EXPECTED
    assert len(list(db.data.find({"dataset": "new"}).stream(31, passes=1))) == 1


def test_names_that_cannot_be(db: TensorDB) -> None:
    fill(db, "digits")
    fill(db, "letters")
    for call in (lambda: db.data.rename("digit", "x"), lambda: db.data.drop("digit")):
        with pytest.raises(NotFoundError, match="no dataset 'digit' in project 'default'; did you mean 'digits'"):
            call()
    with pytest.raises(NotFoundError, match="there are 'digits', 'letters'"):
        db.data.drop("xyz")
    with pytest.raises(DuplicateError, match="there is a dataset 'letters' already"):
        db.data.rename("digits", "letters")
    with pytest.raises(DuplicateError, match="there is a dataset 'digits' already"):
        db.data.rename("digits", "digits")
    for wrong in ("", "a\0b", 7, None):
        with pytest.raises(QueryError, match="non-empty string"):
            db.data.rename("digits", wrong)  # type: ignore[arg-type]
        with pytest.raises(QueryError, match="non-empty string"):
            db.data.drop(wrong)  # type: ignore[arg-type]
    assert values(db, "digits") == values(db, "letters") == EXPECTED


def test_a_rename_that_is_killed_at_any_step(db: TensorDB, mongo_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(db)
    monkeypatch.setattr(module, "LIMIT", 10)
    assert killed_at_each_step(mongo_uri, db, lambda db: db.data.rename("old", "new")) > 10
    db.database["mutations"].update_many({}, {"$set": {"until": dt.datetime(2020, 1, 1)}})  # the leases have run out
    assert values(db, "new") == EXPECTED and values(db, "old") == []
    assert list(db.warehouse.datasets.versions()) == ["new"]
    assert (db.fsck().findings, db.fsck().warnings, db.gc(grace=0).removed) == ([], [], 0)
    assert (
        sum(len(batch["label"]) for batch in db.data.find({"dataset": "new"}).stream(10, shuffle=True, passes=1)) == 30
    )


def test_a_drop_that_is_killed_at_any_step(db: TensorDB, mongo_uri: str) -> None:
    fill(db)
    fill(db, "kept")

    def drop(db: TensorDB) -> None:
        with contextlib.suppress(NotFoundError):  # it was stopped after its last step
            db.data.drop("old")

    assert killed_at_each_step(mongo_uri, db, drop) > 5
    assert list(db.warehouse.datasets.versions()) == ["kept"] and values(db, "kept") == EXPECTED
    assert db.gc(grace=0).removed == 1 and db.fsck().findings == []
    with pytest.raises(NotFoundError):
        db.data.drop("old")
    fill(db)
    assert values(db, "old") == EXPECTED


def test_what_is_under_way_is_ended_as_it_began(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(db)
    fill(db, "gone")

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, "search_index", killed)
        patch.setattr(module, "delete_samples", killed)
        for call in (lambda: db.data.rename("old", "new"), lambda: db.data.drop("gone")):
            with pytest.raises(Killed):
                call()
    with pytest.raises(QueryError, match=r"being renamed to 'new'.*rename\('old', 'new'\)"):
        db.data.rename("old", "newer")
    with pytest.raises(QueryError, match=r"being renamed to 'new'"):
        db.data.drop("old")
    with pytest.raises(QueryError, match=r"being dropped.*drop\('gone'\)"):
        db.data.rename("gone", "x")
    for name, says in (("old", "renamed to 'new'"), ("gone", "removed")):
        with pytest.raises(SchemaError, match=f"dataset '{name}' was {says}"):
            fill(db, name)
    assert (db.data.rename("old", "new"), db.data.drop("gone")) == (30, 30)


def test_a_writer_of_a_dataset_that_goes(db: TensorDB) -> None:
    for what, says in ((lambda: db.data.rename("d", "e"), "renamed to 'e'"), (lambda: db.data.drop("d"), "removed")):
        writer = db.data.writer("d", flush_every=None)
        writer.add(x=np.zeros(4, np.float32), label=0)
        writer.flush()
        what()
        writer.add(x=np.zeros(4, np.float32), label=1)
        with pytest.raises(SchemaError, match=f"dataset 'd' was {says} while this writer was open"):
            writer.flush()
    assert [sample["label"] for sample in db.data.find()] == [0]


def test_in_memory() -> None:
    with TensorDB(client=mongomock.MongoClient(), blobs="memory://") as db:
        fill(db)
        assert db.data.rename("old", "new") == 30 and values(db, "new") == EXPECTED
        assert db.data.drop("new") == 30 and db.data.find().count() == 0
