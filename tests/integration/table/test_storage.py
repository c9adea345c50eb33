"""What there is, and how much room it takes, against a real server."""

from __future__ import annotations

import json
from pathlib import Path

import mongomock
import numpy as np
import pytest
from typer.testing import CliRunner

from tensordb_data import NotFoundError, QueryError, TensorDB
from tensordb_data.cli.main import app
from tensordb_data.table import datasets as datasets_module
from tensordb_data.table.bounded import AtLeast


@pytest.fixture
def filled(db: TensorDB) -> TensorDB:
    with db.data.writer("images") as writer:
        writer.add_many(image=np.zeros((50, 100), np.uint8), label=np.arange(50))
    with db.data.writer("labels") as writer:
        writer.add_many(label=[1, 2])
    db.params.save({"w": np.arange(5000, dtype="f4")}, run="r")
    db.params.save({"w": np.arange(5000, dtype="f4"), "b": np.ones(2000, "f4")}, run="s")
    db.params.save({"w": np.zeros(1000, "f4")})
    other = TensorDB.over(db.warehouse.in_project("other"))
    with other.data.writer("images") as writer:
        writer.add_many(image=np.zeros((5, 100), np.uint8))
    return db


def test_projects_are_those_that_have_anything(filled: TensorDB) -> None:
    assert filled.projects() == ["default", "other"]
    assert TensorDB.over(filled.warehouse.in_project("empty")).projects() == ["default", "other"]
    TensorDB.over(filled.warehouse.in_project("jobs")).jobs.push("t", entry="json:loads")
    assert filled.projects() == ["default", "jobs", "other"]


def test_datasets_say_how_large_they_are(filled: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = filled.data.datasets()
    assert (images.name, images.count, images.written, images.segments) == ("images", 50, 50, 1)
    assert images.exact and 5000 < images.nbytes < 20_000 and labels.nbytes == 0
    assert list(images.schema or ()) == ["image", "label"] and images.created <= images.changed
    assert filled.data.dataset("images") == images
    table = str(filled.data.datasets()).splitlines()
    assert table[0].split() == ["name", "count", "size", "fields", "created", "changed"] and len(table) == 3
    filled.data.find({"dataset": "images", "label": {"$lt": 10}}).delete()
    after = filled.data.dataset("images")
    assert (after.count, after.written) == (40, 50) and after.changed > images.changed
    filled.data.find({"dataset": "labels"}).update({"$set": {"label": 5}})
    assert filled.data.dataset("labels").changed > labels.changed
    with pytest.raises(NotFoundError, match="did you mean 'images'"):
        filled.data.dataset("image")
    with pytest.raises(QueryError, match="has a name"):
        filled.data.dataset(3)  # type: ignore[arg-type]
    empty = TensorDB.over(filled.warehouse.in_project("empty")).data.datasets()
    assert empty == [] and str(empty) == "no datasets in project 'empty'"
    monkeypatch.setattr(datasets_module, "count_within", lambda *args: AtLeast(1))
    assert filled.data.dataset("images").count == 40


def test_a_dataset_of_an_older_version_was_changed_when_its_newest_sample_came(filled: TensorDB) -> None:
    filled.database["datasets"].update_many({}, {"$unset": {"changed": ""}})
    images = filled.data.dataset("images")
    newest = filled.data.find({"dataset": "images"}, sort=[("_id", -1)]).first().id.generation_time
    assert images.changed == max(images.created, newest.replace(tzinfo=images.created.tzinfo))


def test_datasets_that_another_tool_has_written(filled: TensorDB) -> None:
    filled.database["datasets"].update_one({"_id.d": "labels"}, {"$set": {"created": "x", "changed": 7, "seq": "y"}})
    filled.database["datasets"].insert_one({"_id": {"p": "default", "d": 3}})
    images, labels = filled.data.datasets()
    assert (labels.created, labels.changed, labels.written, labels.count) == (None, None, 0, 2) and images.count == 50
    assert "labels" in str(filled.data.datasets()) and "labels" in filled.data.datasets()._repr_html_()


def test_storage_adds_up(filled: TensorDB) -> None:
    found = filled.storage()
    assert list(found.datasets) == ["images"] and found.datasets["images"] == filled.data.dataset("images").nbytes
    assert set(found.runs) == {"r", "s", None} and found.runs["r"] > found.runs["s"] > 0
    assert found.nbytes == found.datasets["images"] + sum(found.runs.values())
    assert found.garbage == found.unfinished == 0 < found.others
    (root,) = found.roots
    assert root.opened and root.writes and root.nbytes == found.nbytes + found.others
    assert found.collections["data"].documents == 57 and found.collections["data"].indexes > 0
    assert "images" in str(found) and "(none)" in str(found) and "57" in str(found)
    filled.data.drop("images")
    filled.gc(grace=0)
    assert filled.storage().datasets == {}


def test_garbage_is_what_the_last_gc_has_marked(filled: TensorDB) -> None:
    before = filled.storage().runs["r"]
    filled.params.find({"run": {"$in": ["r", "s"]}}).delete()
    filled.database["tensors"].update_many(
        {}, {"$set": {"created": filled.data.dataset("images").created.replace(year=2000)}}
    )
    filled.gc()
    after = filled.storage()
    assert after.garbage >= before and "r" not in after.runs


def test_the_commands_print_the_same(filled: TensorDB, mongo_uri: str, warehouse_dir: Path) -> None:
    def run(*args: str) -> str:
        done = CliRunner().invoke(app, [*args, "--db", mongo_uri])
        assert done.exit_code == 0, done.output
        return done.output

    lines = [json.loads(line) for line in run("datasets", "--json").splitlines()]
    assert [(line["name"], line["count"], line["exact"]) for line in lines] == [
        ("images", 50, True),
        ("labels", 2, True),
    ]
    assert lines[0]["schema"]["label"] == {"kind": "int"} and "images" in run("datasets")
    assert run("datasets", "--project", "none").strip() == "no datasets"
    stored = json.loads(run("storage", "--json"))
    assert stored == json.loads(json.dumps(filled.storage().to_json())) | {"cache": stored["cache"]}
    assert "of other projects" in run("storage")


def test_storage_without_a_server() -> None:
    db = TensorDB(client=mongomock.MongoClient(), blobs="memory://")
    with db.data.writer("d") as writer:
        writer.add_many(label=[1, 2, 2])
    assert db.data.dataset("d").count == 3 and db.projects() == ["default"] and db.storage().collections == {}
    assert db.data.find().value_counts("label") == {2: 2, 1: 1} and db.data.find().page(2).next is not None
    assert len(db.data.find().page(2, db.data.find().page(2).next)) == 1
    assert db.data.find().describe()["label"].mean == pytest.approx(5 / 3) and db.data.find().estimate().value == 3
    assert db.data.find().facets(["label"])["label"].values == {2: 2, 1: 1} and len(db.data.find().sample(2)) == 2
    assert sum(db.data.find().split({"a": 0.5, "b": 0.5}).counts.values()) == 3
