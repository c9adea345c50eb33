"""gc beside everything: one actor stopped before each of its steps while another runs from beginning to end, and more.

`MATRICES=all` tries every step of every pair; otherwise each pair has a few of its steps tried, and what is known
to matter has tests of its own, in test_states.py.
"""

from __future__ import annotations

import datetime as dt
import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pymongo
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensordb_data import Keep, TensorDB
from tensordb_data.blobs.stores.memory import MemoryStore
from tensordb_data.errors import CheckpointError, StorageError
from tensordb_data.housekeeping import gc as module
from tensordb_data.tensors import lease
from tensordb_data.warehouse.collection_indexes import INDEXES
from tests.stage import Stage, length

ALL = os.environ.get("MATRICES") == "all"
STOPS = 2  # of a pair, if not all
WRITTEN = 50  # numbers from there on are of samples that a writer adds


class World:
    """A warehouse with something of each kind: in use, not used any more, shared, dying, inline, mostly deleted."""

    def __init__(self, uri: str, stage: Stage) -> None:
        self.stage = stage
        self._client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(uri, event_listeners=[stage])
        self._name = pymongo.uri_parser.parse_uri(uri)["database"]
        self._blobs = f"memory://{uuid.uuid4().hex}"
        self.db = self.open()
        self.actors: dict[str, Callable[[TensorDB], None]] = {
            "gc": lambda db: db.gc(grace=0) and None,
            "collector": lambda db: db.gc(grace=0) and None,
            "compaction": lambda db: db.data.compact("d") and None,
            "writer": self.write,
            "saver": self.save,
            "prune": lambda db: db.params.prune("old", Keep(last=1)) and None,
            "reader": self.read,
            "deleter": lambda db: db.data.find({"n": {"$in": [0, 1, 20]}}).delete() and None,
        }

    def open(self) -> TensorDB:
        db = TensorDB(client=self._client, blobs=self._blobs)
        db.warehouse.index.make(*INDEXES)  # now, and not at some step of a schedule
        return db

    def close(self) -> None:
        self.db.close()
        self._client.close()

    def set_up(self) -> None:
        db = self.db
        with db.data.writer("d") as writer:  # mostly deleted: compaction moves the rest
            writer.add_many(x=rows(range(8)), n=list(range(8)))
        with db.data.writer("d") as writer:  # all deleted: gc takes it
            writer.add_many(x=rows(range(10, 14)), n=list(range(10, 14)))
        with db.data.writer("d", live=True) as writer:  # inline
            writer.add_many(x=rows(range(20, 23)), n=list(range(20, 23)))
        for step in range(4):
            save(db, "old", step)
        save(db, "gone", 7)
        db.params.find({"$or": [{"run": "gone"}, {"run": "old", "step": 1}]}).delete()
        db.data.find({"n": {"$gte": 2, "$lt": 20}}).delete()
        # one tensor is dying since long ago, and its set will be saved again
        dying = {"state": "dying", "dying": dt.datetime(2020, 1, 1)}
        db.database["tensors"].update_one({"run": "gone"}, {"$set": dying})

    def write(self, db: TensorDB) -> None:
        for _ in range(10):
            try:
                with db.data.writer("d") as writer:
                    writer.add_many(x=rows(range(WRITTEN, WRITTEN + 4)), n=list(range(WRITTEN, WRITTEN + 4)))
                return
            except StorageError as error:  # taken for dead
                assert "write these samples again" in str(error)
        raise AssertionError("a writer that nobody lets write")

    def save(self, db: TensorDB) -> None:
        save(db, "gone", 7)  # bytes that are being collected
        save(db, "new", 8)

    def read(self, db: TensorDB) -> None:
        """What is there at the moment is whole; what is deleted at the same time may be missing, never wrong."""
        for found in db.params.find():
            try:
                check_set(found)
            except (CheckpointError, StorageError):
                assert db.params.find({"_id": found.id}).count() == 0
        check_samples(db)

    def play(self, names: list[str], schedule: list[str]) -> None:
        """Some of the actors by a schedule, from the same state each time; then everything must be in order."""
        self.set_up()
        warehouses = {name: self.open() for name in names}
        actors = {name: (lambda name=name: self.actors[name](warehouses[name])) for name in names}
        raised = self.stage.run(actors, schedule)
        assert not raised, (raised, self.stage.played)
        self.check(set(names))

    def check(self, names: set[str]) -> None:
        db = self.db
        numbers = {0, 1, 20, 21, 22} - ({0, 1, 20} if "deleter" in names else set())
        numbers |= set(range(WRITTEN, WRITTEN + 4)) if "writer" in names else set()
        sets = {("old", 3), *(() if "prune" in names else (("old", 0), ("old", 2)))}
        sets |= {("gone", 7), ("new", 8)} if "saver" in names else set()
        for _ in range(2):
            assert {(found.run, found.step) for found in db.params.find()} == sets
            for found in db.params.find():
                check_set(found)
            assert check_samples(db) == numbers
            assert [each for each in db.fsck().findings if each.kind != "leftover"] == []
            db.gc(grace=0)
        db.data.find({"dataset": "d"}).delete()
        db.params.find({"run": {"$ne": None}}).delete()
        db.database["leases"].update_many({}, {"$set": {"until": dt.datetime(2020, 1, 1)}})
        for _ in range(2):
            db.gc(grace=0)
        left = [f"{name}: {doc}" for name in ("tensors", "leases", "segments") for doc in db.database[name].find()]
        left += [key for key, _ in db.warehouse.blobs.store().list()]
        assert left == [], self.stage.played


def rows(numbers: Any) -> np.ndarray[Any, Any]:
    return np.repeat(np.array(list(numbers), "u1")[:, None], 200, axis=1)


def save(db: TensorDB, run: str, step: int) -> None:
    db.params.save({"own": np.full(1000, 100.0 + step), "shared": np.ones(1000)}, run=run, step=step)


def check_set(found: Any) -> None:
    state = found.load()
    assert (state["own"] == 100.0 + found.step).all() and (state["shared"] == 1).all()


def check_samples(db: TensorDB) -> set[int]:
    seen = set()
    for batch in db.data.find({"dataset": "d"}).stream(batch_size=3, passes=1, max_failures=0):
        assert (batch["x"] == batch["n"][:, None]).all()
        seen |= set(batch["n"].tolist())
    return seen


@pytest.fixture
def world(mongo_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    stage = Stage({"tensordb-writer": "writer"})
    # A mark takes effect in the millisecond that it notes: actors stop before a request, never within it.
    monkeypatch.setattr(module, "_MARGIN", dt.timedelta(milliseconds=1))
    for name in ("put", "delete", "get_ranges"):
        real = getattr(MemoryStore, name)

        def stepped(*args: Any, name: str = name, real: Any = real, **kwargs: Any) -> Any:
            stage.point(name)
            found = real(*args, **kwargs)
            stage.point(f"{name} done")
            return found

        monkeypatch.setattr(MemoryStore, name, stepped)
    made = World(mongo_uri, stage)
    yield made
    made.close()


@pytest.fixture
def impatient(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A gc that takes every writer and saver for dead at once."""
    monkeypatch.setattr(module, "SECONDS", 0.0)
    monkeypatch.setattr(lease, "SECONDS", 0.0)
    return world


BESIDE = ("collector", "compaction", "writer", "saver", "prune", "reader", "deleter")
PAIRS = [(a, b) for other in BESIDE for a, b in (("gc", other), (other, "gc"))]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("stopped", "whole"), PAIRS)
def test_one_within_the_other(world: World, stopped: str, whole: str) -> None:
    at_every_step(world, stopped, whole)


def at_every_step(world: World, stopped: str, whole: str) -> None:
    world.set_up()
    steps = {
        name: length(world.stage, name, lambda name=name: world.actors[name](world.db))  # type: ignore[misc]
        for name in (stopped, whole)
    }
    world.check({stopped, whole})
    for before in range(1, steps[stopped] + 1, 1 if ALL else -(-steps[stopped] // STOPS)):
        world.play([stopped, whole], [stopped] * before + [whole] * (steps[whole] + 10))


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("stopped", "whole"), [pair for pair in PAIRS if {*pair} & {"compaction", "writer", "saver"}])
def test_one_that_is_taken_for_dead(impatient: World, stopped: str, whole: str) -> None:
    at_every_step(impatient, stopped, whole)


@pytest.mark.timeout(900)
@settings(
    max_examples=300 if ALL else 6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=not ALL,
)  # fmt: skip
@given(
    others=st.lists(st.sampled_from(BESIDE), min_size=2, max_size=3, unique=True),
    runs=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 12)), max_size=12),
)
def test_any_order(world: World, others: list[str], runs: list[tuple[int, int]]) -> None:
    """gc and two or three others, each for some steps, in any order."""
    names = ["gc", *others]
    world.play(names, [names[who % len(names)] for who, times in runs for _ in range(times)])


def test_the_stage_itself(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule is played as it is written, and the same again, however long a step takes."""
    monkeypatch.setattr("tests.stage._BLOCKED", 60.0)  # these two wait for no lock of each other
    played = []
    for _ in range(2):
        world.set_up()
        world.stage.run(
            {"gc": lambda: world.db.gc(grace=0), "saver": lambda: world.save(world.db)}, ["gc", "saver"] * 10
        )
        played.append(world.stage.played[:20])
        world.check({"saver", "gc"})
    assert played[0] == played[1] and [name for name, _ in played[0]] == ["gc", "saver"] * 10
