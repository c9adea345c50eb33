"""How often the hot paths ask the server: exact numbers, since each question costs as much as a network does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymongo import MongoClient
from pymongo.monitoring import CommandListener, CommandStartedEvent

from tensordb_data import TensorDB
from tensordb_data.stream.fetch import relocate

_OURS_NOT = {"hello", "ping", "endSessions", "buildInfo"}


class Asked(CommandListener):
    """The commands that were sent since the last look."""

    def __init__(self) -> None:
        self._commands: Counter[str] = Counter()

    def started(self, event: CommandStartedEvent) -> None:
        if event.command_name not in _OURS_NOT:
            self._commands[event.command_name] += 1

    def succeeded(self, event: Any) -> None:
        """Nothing."""

    def failed(self, event: Any) -> None:
        """Nothing."""

    def since(self) -> dict[str, int]:
        """What was sent since the last call."""
        found, self._commands = dict(self._commands), Counter()
        return found


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stream asks once a second is not counted: a slow machine would ask it in what takes no second here."""
    monkeypatch.setattr(relocate, "_LOOK", float("inf"))


@pytest.fixture
def db(mongo_uri: str, warehouse_dir: Path, asked: Asked) -> Iterator[TensorDB]:
    with MongoClient(mongo_uri, w="majority", event_listeners=[asked]) as client:
        with TensorDB(client=client, blobs=f"file://{warehouse_dir}/blobs", cache=warehouse_dir / "cache") as opened:
            yield opened


def write(db: TensorDB, first: int, count: int = 1000) -> None:
    numbers = np.arange(first, first + count)
    with db.data.writer("d", flush_every=None) as writer:
        writer.add_many(x=np.zeros((count, 100), np.uint8), n=numbers)


def test_streams(db: TensorDB, asked: Asked) -> None:
    write(db, 0)
    sel = db.data.find({"dataset": "d"})
    for _ in range(2):
        next(iter(sel.stream(batch_size=10, shuffle=True)))
    asked.since()
    stream = sel.stream(batch_size=10, shuffle=True, seed=1)
    batches = iter(stream)
    next(batches)
    assert asked.since() == {"find": 1}, "one question before the first batch, and none for its plan"
    for _ in range(99):
        next(batches)
    assert asked.since() == {}, "none in a pass"
    next(batches)
    assert asked.since() == {"find": 1}, "one for the next pass"
    stream.close()
    assert asked.since() == {}
    write(db, 1000)
    asked.since()
    next(iter(sel.stream(batch_size=10, shuffle=True)))
    assert asked.since() == {"find": 3}, "a plan is extended by what was added, in one question more for its page"
    assert len(list(sel.stream(batch_size=100, passes=1))) == 20
    assert asked.since() == {"find": 4, "killCursors": 1}


def test_writes(db: TensorDB, asked: Asked) -> None:
    write(db, 0)
    asked.since()
    x, n = np.zeros((1000, 100), np.uint8), np.arange(1000)
    # Of the updates one names the segment, one makes it live, and one is the entry in the log of changes.
    commit = {"update": 3, "findAndModify": 1, "insert": 1, "commitTransaction": 1}
    with db.data.writer("d", flush_every=None) as writer:
        assert asked.since() == {"update": 1, "find": 1}
        writer.add_many(x=x, n=n)
        assert asked.since() == {}
        for _ in range(2):
            writer.flush()
            assert asked.since() == commit
            writer.add_many(x=x, n=n)
    assert asked.since() == commit
    db.data.find({"dataset": "d", "n": 3}).update({"$set": {"n": 4}})
    update = {"find": 4, "findAndModify": 1, "update": 1, "insert": 1, "commitTransaction": 1}
    assert asked.since() == update, "with its entry in the log of changes"


def test_annotations_by_columns(db: TensorDB, asked: Asked) -> None:
    with db.data.writer("annotated", flush_every=None) as writer:
        ids = writer.add_many(x=np.zeros((3000, 100), np.uint8), n=np.arange(3000))
    vectors = np.zeros((3000, 4), np.float32)
    db.data.annotate_many(_id=ids, vector=vectors, source="a")
    asked.since()
    db.data.annotate_many(_id=ids, vector=vectors, n=1, source="b")
    expected = {"find": 8, "getMore": 3, "findAndModify": 1, "update": 4, "insert": 1, "commitTransaction": 1}
    assert asked.since() == expected, "one command for 3,000 samples, and none for each"


def test_saves_and_jobs(db: TensorDB, asked: Asked) -> None:
    save = {
        "find": 3,
        "update": 5,
        "findAndModify": 1,
        "commitTransaction": 2,
        "aggregate": 1,
        "insert": 1,
        "delete": 1,
    }
    db.params.save({"w": np.zeros(10_000)}, run="r", step=1)
    asked.since()
    db.params.save({"w": np.ones(10_000)}, run="r", step=2)
    assert asked.since() == save
    db.params.find({"run": "r"}, sort=[("step", -1)]).first().load()
    assert asked.since() == {"count": 1, "find": 3}
    db.jobs.push("k", entry="a:b")
    asked.since()
    db.jobs.push("k", entry="a:b")
    assert asked.since() == {"update": 1, "findAndModify": 1}
    job = db.jobs.claim(worker="w", lease=60)
    assert job is not None
    claim = asked.since()
    assert claim.pop("findAndModify") in (1, 2), "now and then the oldest job is looked for first"
    assert claim == {"update": 1, "find": 1, "distinct": 1}
    job.done()
    assert asked.since() == {"findAndModify": 1, "find": 1}
