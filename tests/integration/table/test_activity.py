"""Looks at what happens, against a real server."""

from __future__ import annotations

import datetime as dt
from typing import Any

import mongomock
import numpy as np
import pytest
from bson import ObjectId

from tensordb_data import TensorDB, UnsupportedError
from tensordb_data.errors import ConnectError
from tensordb_data.table.activity import look as look_module
from tensordb_data.table.activity.history import History
from tensordb_data.table.activity.look import WINDOW, look

NOW = dt.datetime.now(dt.timezone.utc)


def filled(db: TensorDB, n: int) -> None:
    with db.data.writer("digits") as writer:
        writer.add_many(image=np.zeros((n, 100), np.uint8), label=np.arange(n))
    with db.logs.run("cnn") as log:
        for step in range(n):
            log.write(step, loss=1.0)
    db.params.save({"w": np.ones(1000)}, run="cnn", step=n)


def test_rates_are_differences_of_looks(db: TensorDB) -> None:
    filled(db, 10)
    history = History()
    history.add(look(db.warehouse))
    assert set(history.totals.values()) >= {0.0} and history.totals["samples"] == history.totals["saves"] == 0
    filled(db, 20)
    with db.data.writer("new") as writer:
        writer.add_many(label=[1, 2, 3])
    db.data.find({"dataset": "digits", "label": 3}).update({"$set": {"label": 4}})
    history.add(look(db.warehouse))
    now = history.now
    assert now is not None and not now.missing
    seconds = now.at - _first(history, now)
    by_name = {each.name: each for each in history.datasets}
    assert by_name["digits"].written == 30 and by_name["digits"].samples * seconds == pytest.approx(20)
    assert by_name["new"].samples * seconds == pytest.approx(3) and by_name["digits"].changes > 0
    assert history.totals["samples"] * seconds == pytest.approx(23)
    assert history.totals["saves"] * seconds == pytest.approx(1) and by_name["digits"].nbytes > 0
    assert now.runs["cnn"].step == 19 and now.runs["cnn"].rows_per_second == pytest.approx(30 / WINDOW)
    assert [(save.run, save.step, save.nbytes) for save in now.saves] == [("cnn", 20, 8000), ("cnn", 10, 8000)]
    assert now.open == [] and now.saving == 0 and now.passes == 0
    history.add(look(db.warehouse))
    assert history.totals["samples"] == history.totals["saves"] == history.totals["changes"] == 0
    assert len(history.before["samples"]) == 3 and history.before["dataset digits"][1] > 0


def _first(history: History, now: Any) -> float:
    """When the look before was made: the rate of what is known tells it."""
    return now.at - 20 / next(each for each in history.datasets if each.name == "digits").samples


def test_a_dataset_that_was_dropped_and_made_anew_has_no_rate_below_nothing(db: TensorDB) -> None:
    filled(db, 10)
    history = History()
    history.add(look(db.warehouse))
    db.data.drop("digits")
    with db.data.writer("digits") as writer:
        writer.add_many(label=[1, 2])
    history.add(look(db.warehouse))
    assert [(each.written, each.samples) for each in history.datasets if each.name == "digits"] == [(2, 0.0)]
    db.data.drop("digits")
    history.add(look(db.warehouse))
    assert not history.datasets and not any(name.startswith("dataset ") for name in history.before)


def test_savers_jobs_workers_claims_and_open_changes(db: TensorDB) -> None:
    filled(db, 2)
    index = db.warehouse.index
    soon = dt.datetime.now(dt.timezone.utc) + dt.timedelta(minutes=5)
    index["runs"].update_one({"name": "cnn"}, {"$set": {"_tdb.saver": {"host": "h", "pid": 7, "until": soon}}})
    index["params"].update_one({}, {"$set": {"_tdb.claims": {"acc": {"owner": "eval-1", "until": soon}}}})
    index["datasets"].update_one(
        {}, {"$push": {"open": {"id": ObjectId(), "mut": 1, "kind": "update", "host": "h", "pid": 8, "since": NOW}}}
    )
    index["leases"].insert_one({"state": "held", "began": NOW, "until": soon})
    index["leases"].insert_one({"state": "held", "backup": True, "began": NOW, "until": soon})
    index["passes"].insert_one({"_id": "x", "at": soon, "state": "{}"})
    db.jobs.push("train", entry="json:loads")
    job = db.jobs.claim(worker="w1")
    assert job is not None
    now = look(db.warehouse)
    assert not now.missing and now.runs["cnn"].saver == "h:7" and now.saves[0].evaluators == ("eval-1",)
    assert [(one.kind, one.host, one.pid) for one in now.open] == [("update", "h", 8)]
    assert (now.saving, now.backups, now.passes, now.jobs["running"]) == (1, 1, 1, 1)
    assert [(one.kind, one.worker) for one in now.running] == [("train", "w1")]
    job.done()


def test_what_other_tools_have_written_stops_no_look(db: TensorDB) -> None:
    filled(db, 2)
    index, project = db.warehouse.index, db.project
    soon = dt.datetime.now(dt.timezone.utc) + dt.timedelta(minutes=5)
    index["runs"].insert_one({"name": {"$x": 1}, "_tdb": {"p": project, "saver": [{"until": soon}]}})
    index["runs"].insert_one({"name": "odd", "_tdb": {"p": project, "saver": [{"until": soon}]}})
    index["datasets"].insert_one({"_id": {"p": project, "d": 7}, "seq": "many"})
    odd = {"seq": "many", "mut": None, "open": [3, {"pid": []}]}
    index["datasets"].insert_one({"_id": {"p": project, "d": "odd"}, **odd})
    index["logs"].insert_one({"run": ["x"], "step": "y", "_tdb": {"p": project}})
    index["params"].insert_one({"run": 7, "created": "now", "_tdb": {"p": project, "claims": [1], "bytes": "x"}})
    index["jobs"].insert_one({"status": "running", "kind": {}, "progress": "half", "_tdb": {"p": project}})
    index["segments"].insert_one({"p": project, "dataset": [1], "bytes": "x", "state": "live"})
    history = History()
    for _ in range(2):
        history.add(look(db.warehouse))
    now = history.now
    assert now is not None and "digits" in now.datasets and "cnn" in now.runs
    assert not now.missing and history.to_json()["datasets"]
    index["params"].insert_one({"run": "x", "created": NOW, "_tdb": [{"p": project}]})
    missing = look(db.warehouse).missing
    assert set(missing) == {"saves"} and "another tool" in missing["saves"]


def test_what_takes_too_long_is_named_and_the_rest_is_there(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(db, 3)
    monkeypatch.setattr(look_module, "_MANY", 1)
    with db.data.writer("other") as writer:
        writer.add(label=1)
    assert look(db.warehouse).missing == {"other datasets": "only 1 are looked at"}
    monkeypatch.setattr(look_module, "_ROWS", 2)
    assert 0 < look(db.warehouse).runs["cnn"].rows_per_second <= 2

    def late(*args: object) -> Any:
        raise ConnectError("mongodb://me:geheim@db1 is away")

    monkeypatch.setattr(look_module, "_saves", late)
    history = History()
    history.add(look(db.warehouse))
    assert history.now is not None and history.now.saves == () and history.now.datasets
    assert history.now.missing["saves"] == "mongodb://me:***@db1 is away"


def test_mongomock_tells_no_time() -> None:
    with TensorDB(client=mongomock.MongoClient()) as db, pytest.raises(UnsupportedError, match="real server"):
        look(db.warehouse)
