"""`db.runs`: what is listed of each run, found, sorted, counted and deleted."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest
from bson import ObjectId

from tensordb_data import NotFoundError, QueryError, RunHeldError, SchemaError, TensorDB
from tensordb_data.api.runs import as_row
from tensordb_data.checkpoint.checkpointer import Checkpointer
from tensordb_data.checkpoint.options import SaveOptions
from tensordb_data.runs.lease import RunLease


def train(db: TensorDB, run: str, config: Any = None, **metrics: Any) -> None:
    with contextlib.closing(saver(db, run, config)) as one:
        for step, values in enumerate(zip(*metrics.values(), strict=True), 1):
            one.end_step(step, dict(zip(metrics, values, strict=True)))


def saver(db: TensorDB, run: str, config: Any = None) -> Checkpointer:
    def state(step: int) -> dict[str, Any]:
        return {"model": {"w": np.full(3, step)}, "training": {"step": step}}

    options = SaveOptions(signals=False, config=config)
    return Checkpointer(db.warehouse, run, state, every=1, options=options, tags=["t"])


def test_a_run_with_all_that_is_known_of_it(db):
    train(
        db, "a", {"lr": 0.1, "model": {"width": 8}}, val_acc=[0.5, 0.9, 0.7], loss=[3.0, math.nan, 1.0], note=["x"] * 3
    )
    best = db.params.find({"run": "a"}, sort=[("val_acc", -1)]).first()
    db.params.annotate({best.id: {"test_acc": 0.8}}, source="e")
    with db.logs.run("a") as log:
        log.write(9, kind="system", cpu=50.0)
        log.write(2, kind="valid", ok=True, late=1)
    run = db.runs({"name": "a"}).one()
    assert (run.name, run.status, run["sets"], run.tags) == ("a", "ended", 3, ["t"])
    assert run.config == {"lr": 0.1, "model": {"width": 8}}
    assert run.last == {"val_acc": 0.7, "loss": 1.0, "test_acc": 0.8, "late": 1}
    assert run.best == {"val_acc": 0.9, "loss": 1.0, "test_acc": 0.8, "late": 1}
    assert len(run.attempts) == 1 and run["lineage"]["code"] is not None and run["ended"] >= run["began"]
    assert run.rows.count() == 5 and run.checkpoints.count() == 3 and "_tdb" not in run


def test_queries_and_sorts(db):
    for name, lr, acc in (("a", 0.1, [0.5, 0.6]), ("b", 0.01, [0.9, 0.1]), ("c", 0.2, [0.7, 0.8])):
        train(db, name, {"lr": lr}, acc=acc)
    with db.logs.run("d") as log:
        log.write(1, other=1)

    def names(*args: Any, **options: Any) -> list[str]:
        found = [run.name for run in db.runs(*args, **options)]
        assert db.runs(*args, **options).count() == len(found)
        return found

    assert names() == ["a", "b", "c", "d"]
    assert names({"config.lr": {"$lt": 0.15}}, sort=[("best.acc", -1)]) == ["b", "a"]
    assert names(sort=[("best.acc", 1)]) == ["a", "c", "b", "d"]
    assert names(sort=[("best.acc", -1)], limit=2) == ["b", "c"]
    assert names(sort=[("status", 1), ("last.acc", -1)]) == ["c", "a", "b", "d"]
    assert names({"last.acc": {"$gt": 0.5}}) == ["a", "c"]
    assert names({"$or": [{"name": "d"}, {"last.acc": 0.1}]}) == ["b", "d"]
    assert names({"name": {"$in": ["a", "x"]}}) == ["a"] and names({"name": {"$regex": "^[ab]"}}, limit=1) == ["a"]
    assert names({"tags": "t", "sets": 2, "status": "ended"}) == ["a", "b", "c"]
    assert names({"name": "nobody"}) == [] and db.runs(limit=3).head(2)[1].name == "b"
    with pytest.raises(NotFoundError, match="nobody"):
        db.runs({"name": "nobody"}).first()
    for wrong in ({"$where": "1"}, {"a": {"$nonsense": 1}}, {"_tdb.p": "x"}, 3):
        with pytest.raises(QueryError):
            db.runs(wrong).count()
    with pytest.raises(QueryError):
        db.runs(sort=[("name", 2)])


def test_a_log_notes_a_configuration(db):
    with db.logs.run("hand", tags=["t"], config={"lr": np.float32(0.5)}) as log:
        log.write(1, loss=0.5)
    run = db.runs({"config.lr": 0.5, "tags": "t"}).one()
    assert (run.name, run.status, run.best) == ("hand", None, {"loss": 0.5})
    with pytest.raises(SchemaError, match="config="):
        db.logs.run("hand", config={"a.b": 1})
    with pytest.raises(SchemaError, match="a run is named"):
        db.logs.run("", config={"a": 1})
    assert db.runs().count() == 1


def test_superseded_rows_do_not_count(db):
    train(db, "a", acc=[0.9, 0.95])
    db.params.find({"run": "a"}).delete()
    train(db, "a", acc=[0.3])
    run = db.runs().one()
    assert run.best == run.last == {"acc": 0.3} and [each["state"] for each in run.attempts] == ["ended", "ended"]


def test_a_checkpoint_of_a_superseded_step_may_be_the_best_and_is_not_the_last(db):
    train(db, "anew", acc=[0.5, 0.9])
    train(db, "anew", acc=[0.1])
    train(db, "back", acc=[0.3, 0.5, 0.9])
    with contextlib.closing(saver(db, "back")) as one:
        document, _ = one.load(1)  # type: ignore[misc]
        one.start_at(1, document["_id"])
        db.params.save({"w": np.ones(2)}, run="back", by_hand=7)
        assert db.runs({"name": "back"}).one().last == {"acc": 0.3, "by_hand": 7}
        one.end_step(2, {"acc": 0.2})
    train(db, "other", acc=[0.6])
    found = {run.name: (run.last, run.best, run["sets"]) for run in db.runs()}
    assert found == {
        "anew": ({"acc": 0.1}, {"acc": 0.9}, 3),
        "back": ({"acc": 0.2, "by_hand": 7}, {"acc": 0.9, "by_hand": 7}, 5),
        "other": ({"acc": 0.6}, {"acc": 0.6}, 1),
    }
    for run, metrics in (("anew", {"acc": 0.1}), ("back", {"acc": 0.2, "by_hand": 7})):
        with contextlib.closing(saver(db, run)):  # which has neither restored nor made a step
            assert db.runs({"name": run}).one().last == metrics


def test_what_runs_now_and_what_nobody_has_ended(db):
    with contextlib.closing(saver(db, "a")) as one:
        one.end_step(1, {})
        assert db.runs().one().status == "running"
        # as the document of a process is left that was killed on another machine
        change = {"$set": {"_tdb.saver.until": {"$subtract": ["$$NOW", 1]}, "_tdb.saver.process": "x y 1 2"}}
        db.database["runs"].update_one({"name": "a"}, [change])
        assert db.runs({"status": "lost"}).count() == 1


def test_runs_of_version_01_are_listed_by_their_rows_and_sets(db):
    with db.logs.run("rows") as log:
        log.write(1, loss=2.0)
    db.params.save({"w": np.ones(2)}, run="sets", step=3, acc=0.5)
    db.params.save({"w": np.ones(2)}, step=3)  # of no run
    db.database["runs"].drop()
    assert [(run.name, run.status, run["sets"], run.best) for run in db.runs()] == [
        ("rows", None, 0, {"loss": 2.0}), ("sets", None, 1, {"acc": 0.5}),
    ]  # fmt: skip
    assert db.runs(limit=2).delete() == 2 and db.runs().count() == 0


def test_a_delete_takes_rows_sets_and_document_of_the_runs_that_match_and_of_no_other(db):
    train(db, "a", acc=[0.9, 0.8])
    train(db, "a", acc=[0.1])  # the rows before are superseded, and go too
    train(db, "b", acc=[0.5])
    with pytest.raises(QueryError, match="all=True"):
        db.runs().delete()
    assert db.runs({"best.acc": {"$gt": 0.8}}).delete() == 1  # of its sets
    for collection in ("runs", "logs", "params"):
        left = {each.get("name", each.get("run")) for each in db.database[collection].find()}
        assert left == {"b"}
    with contextlib.closing(saver(db, "b")) as one:
        one.end_step(1, {})
        with pytest.raises(RunHeldError):
            db.runs(limit=1).delete()
        assert db.params.find({"run": "b"}).count() >= 1
    assert db.runs().delete(all=True) == 1 and db.runs().all() == []
    assert db.logs.find().count() == 0


def test_a_run_belongs_to_its_project(db):
    train(db, "a", acc=[0.5])
    other = TensorDB.over(db.warehouse.in_project("other"))
    assert other.runs().all() == []
    train(other, "a", acc=[0.7])
    assert db.runs().one().best == {"acc": 0.5} and other.runs({"name": "a"}).delete() == 1
    assert db.runs().count() == 1 and db.params.find().count() == 1


@pytest.mark.parametrize("field, value", [
    ("attempts", 3), ("attempts", [3, {}, {"id": 1}, {"id": ObjectId(), "began": "x", "after": {"step": "y"}}]),
    ("attempts", [{"id": ObjectId(), "began": "soon", "ended": 3, "state": "running"}]), ("tags", 5), ("config", "x"),
    ("name", 7), ("_tdb.saver", 3), ("_tdb.saver", {"until": "x", "token": 1}),
])  # fmt: skip
def test_what_another_tool_has_written_ends_no_listing_and_no_saver(db: TensorDB, field: str, value: Any) -> None:
    with db.logs.run("r", config={"lr": 0.1}) as log:
        log.write(1, loss=0.5)
    document = {"_tdb": {"p": db.project}, "name": "odd", "tags": [], "attempts": []}
    db.database["runs"].insert_one(document)
    db.database["runs"].update_one({"_id": document["_id"]}, {"$set": {field: value}})
    found = {run.name: run for run in db.runs()}
    assert found["r"].config == {"lr": 0.1} and found["r"].last == {"loss": 0.5}
    assert [as_row(run)["name"] for run in db.runs({"config.lr": 0.1})] == ["r"]
    if field != "name":
        assert as_row(found["odd"])["began"] is None
        lease = RunLease.take(db.warehouse, "odd")
        assert lease.attempts[-1]["state"] == "running"
        lease.end()
        assert db.runs({"name": "odd"}).first().status == "ended"
