"""The log of changes: who did what to which samples, with the values before and after."""

from __future__ import annotations

import datetime as dt
import gc
import getpass
import json
import os
import socket
from pathlib import Path
from typing import Any

import bson
import mongomock
import numpy as np
import pytest
import zstandard
from bson import Binary, ObjectId
from typer.testing import CliRunner

from tensordb_data import NotFoundError, QueryError, Scalar, TensorDB
from tensordb_data.cli.main import app
from tensordb_data.runs.lease import RunLease
from tensordb_data.samples import annotate, mutations
from tensordb_data.samples import delete as deletion
from tensordb_data.samples.changes import before, commits, entries
from tests.helpers import bomb


@pytest.fixture
def numbers(db: TensorDB) -> TensorDB:
    fill(db, "numbers", 6)
    return db


def fill(db: TensorDB, dataset: str, count: int, first: int = 0) -> list[ObjectId]:
    with db.data.writer(dataset) as writer:
        return writer.add_many(label=np.arange(first, first + count), text=["a"] * count)


def id_of(db: TensorDB, label: int) -> ObjectId:
    return db.data.find({"label": label}).first().id


def told(db: TensorDB, id: ObjectId) -> list[tuple[Any, ...]]:
    return [(change.what, dict(change.old), dict(change.new)) for change in db.data.history(id)]


def kinds(db: TensorDB, dataset: str = "numbers") -> list[tuple[str, int]]:
    return [(change.what, change.count) for change in db.data.changes(dataset)]


def test_a_sample_has_a_history_from_its_creation_to_its_deletion(numbers: TensorDB) -> None:
    db, id = numbers, id_of(numbers, 3)
    one = db.data.find({"_id": id})
    assert one.update({"$set": {"label": 7}}) == 1
    assert one.tag("clean", "seen") == 1
    assert one.untag("seen") == 1
    assert db.data.annotate({id: {"label": 9, "pred": 0.5}}, source="model:cnn-1@400").changed == 1
    assert one.update({"$inc": {"label": 2}, "$unset": {"pred": ""}}) == 1
    assert one.delete() == 1
    assert told(db, id) == [
        ("add", {}, {}),
        ("update", {"label": 3}, {"label": 7}),
        ("tag", {"tags": []}, {"tags": ["clean", "seen"]}),
        ("untag", {"tags": ["clean", "seen"]}, {"tags": ["clean"]}),
        ("annotate", {"label": 7, "pred": None}, {"label": 9, "pred": 0.5}),
        ("update", {"label": 9, "pred": 0.5}, {"label": 11, "pred": None}),
        ("delete", {}, {}),
    ]
    history = db.data.history(id)
    assert [change.who for change in history][4] == "model:cnn-1@400"
    assert history[0].by == {"user": getpass.getuser(), "host": socket.gethostname(), "pid": os.getpid()}
    assert history[1].who == f"{getpass.getuser()}@{socket.gethostname()}"
    assert [change.mutation for change in history] == [None, 1, 2, 3, 4, 5, 6]
    now = db.database.client.admin.command("hello")["localTime"]
    assert all(change.at is not None and abs(now - change.at) < dt.timedelta(minutes=5) for change in history)
    assert "label=3" in repr(history) and "model:cnn-1@400" in repr(history)
    assert kinds(db) == [("add", 6), *((what, 1) for what, _, _ in told(db, id)[1:])]
    assert "$set" in repr(db.data.changes("numbers"))
    assert [change.what for change in db.data.changes("numbers", limit=2)] == ["update", "delete"]


def test_what_changes_nothing_is_not_in_the_log(numbers: TensorDB) -> None:
    four = numbers.data.find({"label": {"$lt": 4}})
    assert four.update({"$set": {"label": 3}}) == 3
    assert four.update({"$set": {"label": 3}}) == 0 == four.untag("none")
    assert four.tag("a") == 4 and four.tag("a") == 0
    assert four.update({"$min": {"label": 2}}) == 4 and four.update({"$min": {"label": 2}}) == 0
    assert numbers.data.find({"label": {"$in": [2, 5]}}).update({"$max": {"label": 4}}) == 4
    assert [change.what for change in numbers.data.history(id_of(numbers, 5))] == ["add"]
    assert kinds(numbers) == [("add", 6), ("update", 3), ("tag", 4), ("update", 4), ("update", 4)]


@pytest.mark.parametrize("many", [False, True])
def test_changes_of_many_steps_and_datasets(db: TensorDB, monkeypatch: pytest.MonkeyPatch, many: bool) -> None:
    step = 10 if many else 1000
    monkeypatch.setattr(mutations, "LIMIT", step)
    monkeypatch.setattr(annotate, "LIMIT", step)
    monkeypatch.setattr(deletion, "CHUNK", step)
    monkeypatch.setattr(entries, "FEW", 2)
    ids = fill(db, "a", 25) + fill(db, "b", 7, first=100)
    assert db.data.find({"label": {"$gte": 0}}).update({"$inc": {"label": 1}}) == 32
    db.data.annotate({id: {"text": f"t{i}"} for i, id in enumerate(ids)}, source="m")
    assert db.data.find({"label": {"$lt": 24}}).delete() == 23
    for at, dataset in ((0, "a"), (24, "a"), (31, "b")):
        label = at if at < 25 else at - 25 + 100
        gone = [("delete", {}, {})] if at < 23 else []
        assert told(db, ids[at]) == [
            ("add", {}, {}), ("update", {"label": label}, {"label": label + 1}),
            ("annotate", {"text": "a"}, {"text": f"t{at}"}), *gone,
        ]  # fmt: skip
        assert {change.dataset for change in db.data.history(ids[at])} == {dataset}
    assert sum(n for what, n in kinds(db, "a") if what == "update") == 25
    assert sum(n for what, n in kinds(db, "b") if what == "annotate") == 7
    assert {change.mutation for change in db.data.changes("b") if change.what == "update"} == {1}


def test_commits_of_a_minute_are_one_entry(db: TensorDB, monkeypatch: pytest.MonkeyPatch, mongo_uri: str) -> None:
    with db.data.writer("d", schema={"n": Scalar("int")}) as one, db.data.writer("d") as two:
        ids = []
        for writer in (one, one, two, one):
            ids += [writer.add(n=len(ids)), writer.add(n=len(ids))]
            writer.flush()
        db.warehouse.memo(commits.CommitLog, dict).clear()  # as in another process
        monkeypatch.setattr(commits, "TOGETHER", 0.0)
        for _ in range(2):
            ids.append(one.add(n=10))
            one.flush()
    assert kinds(db, "d") == [("add", 8), ("add", 1), ("add", 1)]
    assert all([change.what for change in db.data.history(id)] == ["add"] for id in ids)
    first = db.database["changes"].find_one({"lo": 1})
    assert first is not None and first["r"] == [1, 8]
    monkeypatch.undo()
    with db.data.writer("d") as one:
        ids = [one.add(n=1)]
        one.flush()
        with TensorDB(str(mongo_uri)) as other, other.data.writer("d") as two:  # another process
            ids.append(two.add(n=2))
        ids.append(one.add(n=3))
    assert kinds(db, "d")[3:] == [("add", 1), ("add", 2)]
    assert all([change.what for change in db.data.history(id)] == ["add"] for id in ids)


def test_a_commit_that_failed_is_not_in_the_log(numbers: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no")

    id = id_of(numbers, 1)
    with monkeypatch.context() as patched:
        patched.setattr(commits.CommitLog, "write", fails)
        with pytest.raises(RuntimeError), numbers.data.writer("numbers") as writer:
            writer.add(label=9, text="b")
    with monkeypatch.context() as patched:
        patched.setattr("tensordb_data.samples.changes.apply.write_entry", fails)
        with pytest.raises(RuntimeError):
            numbers.data.find({"_id": id}).update({"$set": {"label": 8}})
    assert kinds(numbers) == [("add", 6)] and numbers.data.find({"label": {"$gte": 8}}).count() == 0
    assert fill(numbers, "numbers", 1) and kinds(numbers) == [("add", 7)]


def test_large_values_are_left_out_and_the_log_says_so(numbers: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "VALUES", 200)
    monkeypatch.setattr(entries, "UPDATE", 200)
    monkeypatch.setattr("tensordb_data.samples.changes.each.VALUES", 200)
    monkeypatch.setattr(before.read_before, "__defaults__", (200,))
    six, long = numbers.data.find({"dataset": "numbers"}), "x" * 300
    assert six.update({"$set": {"text": "b"}}) == 6
    assert six.update({"$set": {"text": long}}) == 6
    id = id_of(numbers, 2)
    numbers.data.annotate({id: {"text": long + "y"}}, source="m")
    changes = numbers.data.history(id)
    assert [(change.old, change.new) for change in changes[2:]] == [({}, {}), ({}, {})]
    assert ["update of more than" in change.left_out for change in changes] == [False, False, True, False]
    assert "earlier values" in changes[3].left_out and "new values" in changes[3].left_out
    assert numbers.data.find({"_id": id}).update({"$inc": {"label": 10}, "$set": {"text": "c"}}) == 1
    monkeypatch.setattr("tensordb_data.samples.changes.before.VALUES", 50)
    numbers.data.annotate({id: {"text": long}}, source="m")
    assert numbers.data.find({"_id": id}).update({"$inc": {"label": 10}, "$set": {"text": "d"}}) == 1
    assert numbers.data.find({"_id": id}).first()["label"] == 22  # each took place once
    assert "earlier values" in numbers.data.history(id)[-1].left_out


def test_an_ingest_says_what_it_changed(db: TensorDB, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("k,label\n1,3\n2,4\n")
    assert db.data.ingest(table, "t", key="k").added == 2
    table.write_text("k,label\n1,3\n2,5\n")
    assert db.data.ingest(table, "t", key="k").updated == 1
    sample = db.data.find({"k": 2}).first()
    assert told(db, sample.id) == [("add", {}, {}), ("ingest", {"label": 4}, {"label": 5})]
    assert db.data.history(sample.id)[1].by["source"].endswith("t.csv")


def test_credentials_of_a_source_stay_out(db: TensorDB) -> None:
    found = entries.author(db.warehouse, "s3://key:secret@bucket/prefix?X-Amz-Signature=secret")
    assert found["source"] == "s3://bucket/prefix"


def test_the_log_belongs_to_the_dataset(numbers: TensorDB, mongo_uri: str) -> None:
    db, id = numbers, id_of(numbers, 3)
    db.data.find({"_id": id}).update({"$set": {"label": 33}})
    db.data.schema("numbers").rename(label="digit")  # type: ignore[union-attr]
    db.data.rename("numbers", "digits")
    db.data.find({"_id": id}).delete()
    assert kinds(db, "digits") == [("add", 6), ("update", 1), ("rename field", 0), ("rename", 0), ("delete", 1)]
    assert [change.what for change in db.data.history(id)] == ["add", "update", "delete"]
    with pytest.raises(NotFoundError, match="no dataset 'numbers'"):
        db.data.changes("numbers")
    with TensorDB(mongo_uri, project="other") as other, pytest.raises(NotFoundError):
        other.data.history(id)
    db.data.drop("digits")
    assert db.database["changes"].count_documents({}) == 0
    with pytest.raises(NotFoundError, match=str(id)):
        db.data.history(id)


def test_old_entries_are_removed_only_when_asked(numbers: TensorDB) -> None:
    id = id_of(numbers, 3)
    numbers.data.find({"_id": id}).update({"$set": {"label": 7}})
    assert numbers.data.prune_changes("numbers", older_than=dt.timedelta(days=1)) == 0
    assert kinds(numbers) == [("add", 6), ("update", 1)]
    assert numbers.data.prune_changes("numbers", older_than=dt.timedelta(0)) == 2
    assert kinds(numbers) == [("prune", 2)] and list(numbers.data.history(id)) == []
    assert fill(numbers, "numbers", 1) and kinds(numbers) == [("prune", 2), ("add", 1)]
    with pytest.raises(NotFoundError):
        numbers.data.prune_changes("none", older_than=dt.timedelta(0))
    with pytest.raises(QueryError, match="timedelta"):
        numbers.data.prune_changes("numbers", older_than=90)  # type: ignore[arg-type]


HOSTILE: list[dict[str, Any]] = [
    {}, {"k": 7, "at": "now", "n": "many", "by": [1], "m": 1.5}, {"u": b"no bson"}, {"u": "text"}, {"old": b"\0" * 20},
    {"old": Binary(bomb(1 << 33))}, {"old": Binary(zstandard.compress(b"\x05\0\0\0\0" * 3 + b"\xff\xff\xff\x7f"))},
    {"old": Binary(zstandard.compress(b"\0\0\0\0"))}, {"old": Binary(zstandard.compress(b"\xfb\xff\xff\xff\0\0\0\0"))},
    {"s": b"1234"}, {"s": 8}, {"lo": 0, "hi": 99, "r": "runs"}, {"lo": 0, "hi": 99, "r": [None, {}]},
    {"u": Binary(bson.encode({"$set": 3, "$inc": {"label": "x"}, "$addToSet": {"tags": 4}, "$pull": {"a": {}}}))},
    {"new": Binary(zstandard.compress(bson.encode({"set": 4, "unset": 5, "blobs": 6})))}, {"by": {"source": {"a": 1}}},
    {"by": {"user": "x", "runs": [{}, None, "\x1b[2J"]}}, {"by": {"runs": 7}},
    {"at": bson.DatetimeMS(2**60)}, {"k": "\x1b[2J", "by": {"user": "\x1b]0;x"}},
]  # fmt: skip


def test_a_job_is_named(numbers: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "_job", [])
    entries.note_job("7")
    assert numbers.data.find({"label": 1}).tag("x") == 1
    assert numbers.data.changes("numbers")[-1].who == "job 7"


def test_open_runs_are_named(numbers: TensorDB) -> None:
    def newest() -> Any:
        return numbers.data.changes("numbers")[-1]

    person = newest().who
    with numbers.logs.run("a"):
        numbers.data.find({"label": 1}).tag("x")
        assert newest().by["runs"] == ["a"] and newest().who == f"{person}, run a"
        with numbers.data.writer("numbers") as writer:
            writer.add(label=1, text="a")
        assert (newest().what, newest().by["runs"]) == ("add", ["a"]), "not among the commits before the run"
        saver = RunLease.take(numbers.warehouse, "b")
        numbers.data.annotate({id_of(numbers, 3): {"label": 4}}, source="model:b@1")
        assert newest().by["runs"] == ["a", "b"] and newest().who == "model:b@1"
        saver.end()
        numbers.data.find({"label": 2}).tag("x")
        assert newest().by["runs"] == ["a"]
    with numbers.data.writer("numbers") as writer:
        writer.add(label=1, text="a")
    assert newest().what == "add" and "runs" not in newest().by and newest().who == person


def test_runs_of_others_are_not_named(numbers: TensorDB, mongo_uri: str, warehouse_dir: Path) -> None:
    blobs = f"file://{warehouse_dir}/blobs"
    with TensorDB(mongo_uri, project="other", blobs=blobs) as other, other.logs.run("a"):
        numbers.data.find({"label": 1}).tag("x")
    left = numbers.logs.run("left")
    del left
    gc.collect()
    numbers.data.find({"label": 2}).tag("x")
    assert ["runs" in change.by for change in numbers.data.changes("numbers")[-2:]] == [False, False]


@pytest.mark.parametrize("few", [True, False])
def test_entries_of_other_tools_harm_no_reader(numbers: TensorDB, few: bool) -> None:
    id = id_of(numbers, 3)
    for entry in HOSTILE:
        of = {"p": "default", "dataset": "numbers", "few" if few else "ids": [id]}
        numbers.database["changes"].insert_one({**of, **entry})
    numbers.database["changes"].insert_one({"p": "default", "dataset": ["numbers"], "few": {"a": id}})
    numbers.data.find({"_id": id}).update({"$set": {"label": 7}})
    history = numbers.data.history(id)
    assert [(c.old, c.new) for c in history if c.mutation == 1] == [({"label": 3}, {"label": 7})]
    assert "\x1b" not in repr(history) and len(numbers.data.changes("numbers")) == len(HOSTILE) + 3
    assert "\x1b" not in repr(numbers.data.changes("numbers")) and numbers.data.changes("numbers")._repr_html_()


def test_from_a_shell(numbers: TensorDB, mongo_uri: str, warehouse_dir: Path) -> None:
    def said(*words: str, status: int = 0) -> str:
        done = CliRunner().invoke(app, [*words, "--db", mongo_uri])
        assert done.exit_code == status, done.output
        return done.output

    id = id_of(numbers, 3)
    numbers.data.find({"_id": id}).update({"$set": {"label": 7}})
    assert "label=7" in said("history", str(id)) and "update" in said("changes", "numbers")
    add, update = map(json.loads, said("history", str(id), "--json").splitlines())
    assert (add["what"], update["old"], update["new"]) == ("add", {"label": 3}, {"label": 7})
    assert json.loads(said("changes", "numbers", "--limit", "1", "--json"))["mutation"] == 1
    assert "24 hexadecimal digits" in said("history", "7", status=1)
    assert "no dataset" in said("changes", "none", status=1) and "90d" in said(
        "changes", "numbers", "--prune", "old", status=1
    )  # fmt: skip
    assert "0 entries removed" in said("changes", "numbers", "--prune", "90d")


def test_arguments(numbers: TensorDB) -> None:
    for call in (lambda: numbers.data.history("5"), lambda: numbers.data.changes(7), lambda: numbers.data.changes(
        "numbers", limit=0
    )):  # fmt: skip
        with pytest.raises(QueryError):
            call()


def test_without_a_server() -> None:
    with TensorDB(client=mongomock.MongoClient(), blobs="memory://") as db:
        ids = fill(db, "d", 3)
        db.data.find({"label": 1}).update({"$set": {"label": 5}})
        db.data.annotate({ids[1]: {"label": 6}}, source="m")
        db.data.find({"label": 6}).delete()
        assert [what for what, _, _ in told(db, ids[1])] == ["add", "update", "annotate", "delete"]
        assert told(db, ids[1])[1:3] == [
            ("update", {"label": 1}, {"label": 5}), ("annotate", {"label": 5}, {"label": 6})
        ]  # fmt: skip
        assert kinds(db, "d") == [("add", 3), ("update", 1), ("annotate", 1), ("delete", 1)]
