"""Changes while the server goes away: at each command they lose the connection twice, before it is done or after.

The driver tries a command again by itself once. What is tested is that a change takes place once, returns what it
returns without a fault, and that a stream hears of it. `MATRICES=all` tries every command of every change.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensordb_data import TensorDB
from tests.faults.lossy_proxy import LossyProxy, lossy

ALL = os.environ.get("MATRICES") == "all"


@pytest.fixture
def proxy(mongo_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[LossyProxy]:
    monkeypatch.setattr("pymongo.common.MIN_HEARTBEAT_INTERVAL", 0.02)  # a driver looks half a second later
    with lossy(mongo_uri) as proxy:
        yield proxy


def fill(db: TensorDB) -> None:
    with db.data.writer("d") as writer:
        writer.add_many(number=np.arange(20), label=np.zeros(20, int))
    for step in range(3):
        db.params.save({"w": np.zeros(3)}, run="r", step=step, acc=0.0)
    with db.logs.run("r") as log:
        log.write(1, loss=1.0)
    db.jobs.push("k", entry="a:b")
    db.architectures.save("cnn", factory="a:b")


def more(db: TensorDB) -> None:
    """What the deletions delete."""
    with db.data.writer("d") as writer:
        writer.add_many(number=np.arange(100, 103), label=np.zeros(3, int))
    db.params.save({"w": np.zeros(3)}, run="z", step=1)
    db.jobs.push("z", entry="a:b")
    db.architectures.save("z", factory="a:b")


def digest(db: TensorDB) -> list[list[Any]]:
    """All that the changes change."""
    of = {"data": ["number", "label", "a", "tags"], "params": ["run", "step", "acc", "x", "tags"], "jobs": ["kind",
          "priority", "tags"], "architectures": ["name", "tags"], "logs": ["run", "step", "tags"]}  # fmt: skip
    docs = {name: db.database[name].find({"_tdb.p": db.project}).sort("_id", 1) for name in of}
    return [[name, *(doc.get(field) for field in of[name])] for name, found in docs.items() for doc in found]


LATER = {"dataset": "d", "number": {"$gte": 100}}


def later(db: TensorDB) -> dict[Any, Any]:
    return {id: {"a": 1} for id in db.data.find(LATER).bound.ids()}


CHANGES: dict[str, Callable[[TensorDB], object]] = {
    "update": lambda db: db.data.find({"dataset": "d"}).update({"$inc": {"label": 1}}),
    "of a limit": lambda db: db.data.find({"dataset": "d"}, limit=3).update({"$inc": {"label": 1}}),
    "a new field": lambda db: db.data.find({"dataset": "d"}).update({"$set": {"a": 1}}),
    "tag": lambda db: db.data.find({"dataset": "d"}).tag("t"),
    "delete": lambda db: db.data.find(LATER).delete(),
    "delete of a limit": lambda db: db.data.find(LATER, limit=2).delete(),
    "annotate": lambda db: len(db.data.annotate(later(db), source="m").unknown),
    "rename": lambda db: db.data.rename("d", "e"),
    "drop": lambda db: db.data.drop("d"),
    "update of sets": lambda db: db.params.find({"run": "r"}).update({"$inc": {"acc": 1.0}}),
    "tag of sets": lambda db: db.params.find({"run": "r"}).tag("t"),
    "delete of sets": lambda db: db.params.find({"run": "z"}).delete(),
    "update of jobs": lambda db: db.jobs.find({"kind": "k"}).update({"$inc": {"priority": 1}}),
    "delete of jobs": lambda db: db.jobs.find({"kind": "z"}).delete(),
    "tag of architectures": lambda db: db.architectures.find().tag("t"),
    "tag of rows": lambda db: db.logs.find({"run": "r"}).tag("t"),
}


def labels(db: TensorDB) -> list[Any]:
    """What a shuffled stream, which reads a plan, delivers."""
    if not db.data.find().count():
        return []
    with db.data.find({"dataset": {"$in": ["d", "e"]}}).stream(64, ["number", "label"], shuffle=True, passes=1) as all_:
        return sorted((n, y) for batch in all_ for n, y in zip(batch["number"], batch["label"], strict=True))


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_takes_place_once_whichever_command_is_lost(proxy: LossyProxy, warehouse_dir: Path, name: str) -> None:
    change, blobs = CHANGES[name], f"file://{warehouse_dir}/blobs"

    def once(project: str, lost: int | None, carried_out: bool) -> tuple[object, list[Any], list[Any]]:
        with TensorDB(proxy.uri, blobs=blobs, project=project) as db:
            fill(db)
            more(db)
            before = labels(db)
            proxy.lose(1_000_000 if lost is None else lost, carried_out=carried_out)
            returned = change(db)
            proxy.calm()
            assert lost is None or proxy.lost
            after = labels(db)
            changed = [number for number in before if number not in after]
            return returned, digest(db), [after, changed]

    right, count = once("right", None, False), proxy.passed
    every = [(lost, carried_out) for lost in range(count) for carried_out in (False, True)]
    chosen = np.random.default_rng(len(name)).choice(len(every), 1)
    for lost, carried_out in every if ALL else [every[i] for i in chosen]:
        assert once(f"{lost}{carried_out}", lost, carried_out) == right, (lost, carried_out, proxy.lost)
