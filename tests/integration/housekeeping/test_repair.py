"""What fsck --repair mends, each from what another part of the warehouse tells, and what it leaves alone."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bson import ObjectId
from typer.testing import CliRunner

from tensordb_data import TensorDB
from tensordb_data.cli.main import app


@pytest.fixture
def filled(db: TensorDB) -> TensorDB:
    for name in ("d", "e"):
        with db.data.writer(name) as writer:
            writer.add_many(x=np.arange(40, dtype=np.float32).reshape(10, 4), label=np.arange(10))
    return db


def mended(db: TensorDB) -> list[str]:
    found = db.repairs()
    for each in found:
        each.mend()
    assert db.repairs() == []
    return [each.what for each in found]


def test_nothing_to_mend(filled: TensorDB) -> None:
    filled.data.find({"dataset": "d", "label": 3}).delete()
    filled.data.rename("d", "f")
    assert filled.repairs() == []


def test_a_counter(filled: TensorDB) -> None:
    """The next commit would meet numbers that are taken."""
    filled.database["datasets"].update_one({"_id.d": "d"}, {"$set": {"seq": 4}})
    mut = filled.database["datasets"].find_one({"_id.d": "d"})["mut"]
    (what,) = mended(filled)
    assert "its counter is 4, and a sample has the number 10" in what
    assert filled.database["datasets"].find_one({"_id.d": "d"})["mut"] == mut + 1
    with filled.data.writer("d") as writer:
        writer.add(x=np.zeros(4, np.float32), label=11)
    assert filled.data.find({"dataset": "d"}).count() == 11


def test_documents_of_segments(filled: TensorDB) -> None:
    segments = filled.database["segments"]
    lost, wrong = segments.find({}, sort=[("_id", 1)])
    segments.delete_one({"_id": lost["_id"]})
    segments.update_one({"_id": wrong["_id"]}, {"$set": {"bytes": {"$gt": 1}, "index": [0, 0]}})
    assert len(filled.fsck().findings) > 1
    what = mended(filled)
    assert len(what) == 2 and "made from the object" in what[0] and "the document gets that" in what[1]
    assert filled.fsck().findings == []
    for doc in (lost, wrong):
        assert {**segments.find_one({"_id": doc["_id"]}), "created": 0} == {**doc, "created": 0, "v": 0} or (
            {**segments.find_one({"_id": doc["_id"]}), "created": 0} == {**doc, "created": 0}
        )


def test_changes_of_the_dead(filled: TensorDB) -> None:
    ago, soon = dt.datetime(2020, 1, 1), dt.datetime(2100, 1, 1)
    dead, alive, orphan = ObjectId(), ObjectId(), ObjectId()
    entries = [{"id": id, "mut": 1, "kind": "update", "host": "h", "pid": 1, "since": ago} for id in (dead, alive)]
    filled.database["datasets"].update_one({"_id.d": "d"}, {"$set": {"open": entries}})
    about = {"p": "default", "d": ["d"], "kind": "update"}
    filled.database["mutations"].insert_many(
        [{"_id": id, "until": until, **about} for id, until in ((dead, ago), (alive, soon), (orphan, ago))]
    )
    assert len(mended(filled)) == 2
    assert [entry["id"] for entry in filled.database["datasets"].find_one({"_id.d": "d"})["open"]] == [alive]
    assert [doc["_id"] for doc in filled.database["mutations"].find()] == [alive]


def test_what_is_left_alone(filled: TensorDB, warehouse_dir: Path) -> None:
    """Objects that are gone or damaged, values of another kind, keys that are not ours."""
    segments = filled.database["segments"]
    first, second = segments.find({}, sort=[("_id", 1)])
    (warehouse_dir / "blobs" / first["key"]).unlink()
    segments.delete_one({"_id": first["_id"]})
    segments.update_one({"_id": second["_id"]}, {"$set": {"key": "../other", "bytes": 1}})
    filled.database["data"].update_one({"dataset": "e", "label": 3}, {"$set": {"label": "three"}})
    before = documents(filled)
    assert filled.repairs() == [] and documents(filled) == before
    assert {finding.kind for finding in filled.fsck().findings} >= {"dangling reference", "damaged document"}


def documents(db: TensorDB) -> Any:
    return {name: list(db.database[name].find()) for name in ("data", "datasets", "segments", "mutations")}


def test_the_command(filled: TensorDB, mongo_uri: str, warehouse_dir: Path) -> None:
    """It says what it would do, asks, and then checks everything."""
    run, command = CliRunner(), ["fsck", "--repair", "--db", mongo_uri]
    filled.database["datasets"].update_one({"_id.d": "d"}, {"$set": {"seq": 4}})
    done = run.invoke(app, command, input="n\n")
    assert done.exit_code == 0 and "can be mended: dataset 'd'" in done.stdout and "nothing was mended" in done.stderr
    assert filled.database["datasets"].find_one({"_id.d": "d"})["seq"] == 4
    done = run.invoke(app, [*command, "--yes", "--json"])
    said = json.loads(done.stdout)
    assert len(said["mended"]) == 1 and said["findings"] == [], done
    assert filled.database["datasets"].find_one({"_id.d": "d"})["seq"] == 10
    done = run.invoke(app, [*command, "--yes"])
    assert done.exit_code == 0 and "nothing that can be mended" in done.stdout
    assert run.invoke(app, [*command, "--rebuild"]).exit_code == 2
