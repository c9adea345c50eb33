"""Attempts: whose rows and sets they are, which rows are superseded, and which sets stay."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import numpy as np
import pytest

from tensordb_data import CheckpointError, Keep, TensorDB
from tensordb_data.checkpoint.checkpointer import Checkpointer
from tensordb_data.checkpoint.options import SaveOptions

ALL = {"superseded": {"$in": [None, True]}}


def saver(db: TensorDB, **options: Any) -> Checkpointer:
    def state(step: int) -> dict[str, Any]:
        return {"model": {"w": np.full(3, step)}, "training": {"step": step}}

    return Checkpointer(db.warehouse, "r", state, every=1, options=SaveOptions(signals=False), **options)


def train(db: TensorDB, steps: int, restore: int | None = None, attempt: int = 0, **options: Any) -> None:
    """An attempt of so many steps, after the newest set of a step, or anew."""
    with contextlib.closing(saver(db, **options)) as one:
        begin = 0
        if restore is not None:
            document, _ = one.load(restore)  # type: ignore[misc]
            begin = document["step"]
            one.start_at(begin, document["_id"])
        for step in range(begin + 1, begin + steps + 1):
            one.end_step(step, {"attempt": attempt})


def rows(db: TensorDB, **filter: Any) -> list[tuple[int, int]]:
    found = db.logs.find({"run": "r", **filter}, sort=[("step", 1), ("attempt", 1)])
    return [(row.step, row["attempt"]) for row in found]


def test_rows_behind_the_restored_step_are_hidden_until_they_are_asked_for(db):
    train(db, 5, attempt=0)
    train(db, 2, restore=3, attempt=1)
    seen = [(1, 0), (2, 0), (3, 0), (4, 1), (5, 1)]
    assert rows(db) == seen == [(row.step, row["attempt"]) for row in db.logs.find({"attempt": {"$gte": 0}})]
    assert db.logs.find({"run": "r"}).count() == 5 and db.logs.find({"run": "r"}).distinct("attempt") == [0, 1]
    (series,) = db.logs.find({"run": "r"}).series("attempt")
    assert list(series.mean) == [0, 0, 0, 1, 1]
    assert rows(db, superseded=True) == [(4, 0), (5, 0)]
    assert rows(db, **ALL) == sorted([*seen, (4, 0), (5, 0)])
    with db.logs.run("other") as log:
        log.write(4, attempt=7)
    assert db.logs.find({"step": 4}).count() == 2


def test_a_start_without_a_restore_is_an_attempt_of_its_own(db):
    train(db, 3, attempt=0)
    train(db, 2, attempt=1)
    assert rows(db) == [(1, 1), (2, 1)]
    attempts = db.database["runs"].find_one({"name": "r"})["attempts"]
    assert [each["after"] for each in attempts] == [None, None]
    sets = db.params.find({"run": "r"}).all()
    assert [each.attempt for each in sets] == [attempts[0]["id"]] * 3 + [attempts[1]["id"]] * 2


def test_anybody_may_write_rows_and_they_belong_to_the_attempt_that_is_under_way(db):
    with db.logs.run("r") as log:
        log.write(1, attempt=-1)  # of none: it stays whatever is tried later
    with contextlib.closing(saver(db)) as one:
        one.end_step(1, {"attempt": 0})
        with db.logs.run("r") as log:
            log.write(1, kind="note", attempt=5)
        id = db.params.save({"w": np.ones(2)}, run="r", step=1)
    found = db.database["runs"].find_one({"name": "r"})
    assert len(found["attempts"]) == 1  # the log has begun none
    assert db.params.find({"_id": id}).first().attempt == found["attempts"][0]["id"]
    train(db, 1, attempt=1)
    assert rows(db) == [(1, -1), (1, 1)]
    assert rows(db, superseded=True) == [(1, 0), (1, 5)]


def test_a_fit_that_goes_on_in_the_same_saver_hides_nothing(db):
    with contextlib.closing(saver(db)) as one:
        one.end_step(1, {"attempt": 0})
        one.suspend()  # as Keras does at the end of fit
        assert db.database["runs"].find_one({"name": "r"})["attempts"][-1]["state"] == "ended"
        one.end_step(2, {"attempt": 1})
    assert rows(db) == [(1, 0), (2, 1)]


def test_rows_and_sets_of_version_01_count_until_the_run_begins_anew_behind_them(db):
    with db.logs.run("r") as log:
        for step in range(1, 5):
            log.write(step, attempt=0)
    train(db, 2, attempt=0)
    for collection in ("logs", "params"):
        db.database[collection].update_many({}, {"$unset": {"_tdb.a": 1, "_tdb.line": 1}})
    db.database["logs"].delete_many({"kind": "train", "step": {"$lte": 2}, "attempt": 0, "_tdb.a": {"$exists": True}})
    db.database["runs"].delete_many({})
    train(db, 1, restore=2, attempt=1)
    assert {step for step, attempt in rows(db) if attempt == 0} == {1, 2}
    assert (3, 1) in rows(db)


@pytest.mark.parametrize("seed", range(4))
def test_after_any_history_the_rows_of_the_newest_line_are_seen(db, seed):
    dice = random.Random(seed)
    written: list[tuple[int, int]] = []
    expected: list[tuple[int, int]] = []
    sets: dict[int, list[tuple[int, int]]] = {}  # of each step, the line that leads to its newest set
    for attempt in range(7):
        restore = dice.choice([None, *sets]) if sets else None
        line = [] if restore is None else sets[restore]
        steps = dice.randint(0, 3)
        train(db, steps, restore=restore, attempt=attempt)
        for step in range((restore or 0) + 1, (restore or 0) + steps + 1):
            written.append((step, attempt))
            line = [*line, (step, attempt)]
            sets[step] = line
        if steps or restore is not None:  # one that neither restored nor stepped has changed nothing
            expected = line
        assert rows(db) == sorted(expected)
        assert rows(db, **ALL) == sorted(written)


def test_a_policy_keeps_the_newest_set_of_each_attempt_that_began_anew(db):
    train(db, 3, attempt=0, keep=Keep(last=1))
    train(db, 2, attempt=1, keep=Keep(last=1))
    kept = [(each.step, each.attempt) for each in db.params.find({"run": "r"})]
    first, second = (each["id"] for each in db.database["runs"].find_one({"name": "r"})["attempts"])
    assert kept == [(3, first), (2, second)]
    train(db, 2, restore=2, attempt=2, keep=Keep(last=1))  # goes on with the same line
    assert [each.step for each in db.params.find({"run": "r"})] == [3, 4]
    pruned = db.params.prune("r", Keep(last=1))
    assert pruned.deleted == [] and list(pruned.kept.values()) == [["attempt"], ["newest", "last"]]
    db.params.prune("r", Keep(last=1, attempts=False))
    assert [each.step for each in db.params.find({"run": "r"})] == [4]
    with pytest.raises(CheckpointError, match="attempts="):
        Keep(attempts=1)  # type: ignore[arg-type]
