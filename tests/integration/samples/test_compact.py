"""Compaction: nothing that a reader sees changes, whoever writes, reads, compacts or is killed beside it."""

from __future__ import annotations

import json
import multiprocessing
import random
import subprocess
import sys
import threading
from typing import Any

import mongomock
import numpy as np
import pytest

from tensordb_data import Array, Bytes, NotFoundError, TensorDB, Text
from tensordb_data.samples import compact as compact_module
from tensordb_data.samples import write_batch as batch_module
from tensordb_data.warehouse.index import Index
from tests import warm

SCHEMA = {"image": Array("uint8", (2, 2)), "raw": Bytes(), "note": Text(optional=True), "label": int}


def fill(db: TensorDB, numbers: range, live: bool = True, compression: str | None = None) -> None:
    with db.data.writer("d", schema=SCHEMA, live=live, compression=compression) as writer:
        for i in numbers:
            writer.add(label=i, **values(i))


def values(i: int) -> dict[str, Any]:
    values = {"image": np.full((2, 2), i % 251, np.uint8), "raw": bytes([i % 251]) * (5000 if i % 7 == 0 else i % 5)}
    return values if i % 3 else {**values, "note": f"note {i} " * 20}


def seen(db: TensorDB) -> list[tuple[Any, ...]]:
    """What any reader sees of each sample, checked against what was written."""
    found = []
    for sample in db.data.find({"dataset": "d"}):
        expected = values(sample["label"])
        assert set(sample) == {"_id", "dataset", "tags", "label", *expected}
        np.testing.assert_array_equal(sample["image"], expected["image"])
        assert (sample["raw"], sample.get("note")) == (expected["raw"], expected.get("note"))
        found.append((sample.id, sample._doc["_tdb"]["s"], sample["label"]))
    assert [s for _, s, _ in found] == sorted(s for _, s, _ in found)
    return found


def inline(db: TensorDB) -> int:
    names = ("image", "raw", "note")
    return db.database["data"].count_documents({"$or": [{f"_tdb.b.{name}.d": {"$exists": True}} for name in names]})


def check_references(db: TensorDB) -> None:
    """No sample refers to a segment that is not live."""
    used = {part["k"] for doc in db.database["data"].find() for part in doc["_tdb"]["b"].values() if "k" in part}
    live = {doc["_id"] for doc in db.database["segments"].find({"state": "live"})}
    assert used <= live


@pytest.mark.parametrize("compression", [None, "zstd:3"])
def test_inline_blobs_move_into_segments(db: TensorDB, compression: str | None) -> None:
    fill(db, range(50), compression=compression)
    fill(db, range(50, 60), live=False)
    before, version = seen(db), db.warehouse.datasets.versions()["d"]
    calls: list[tuple[int, int]] = []
    report = db.data.compact("d", progress=lambda done, total, _: calls.append((done, total)))
    assert (report.samples, report.dying, report.damaged) == (50, 0, [])
    assert report.segments == 1 and calls[-1] == (60, 60)
    assert inline(db) == 0 and seen(db) == before
    assert db.warehouse.datasets.versions()["d"] == (version[0], version[1] + 2)
    check_references(db)
    again = db.data.compact("d")
    assert (again.samples, again.segments) == (0, 0)
    assert db.warehouse.datasets.versions()["d"] == (version[0], version[1] + 2)
    fill(db, range(60, 65))
    assert db.data.compact("d").samples == 5 and len(seen(db)) == 65
    with pytest.raises(NotFoundError, match="no dataset 'nothing'"):
        db.data.compact("nothing")


def test_mostly_dead_segments_are_rewritten(db: TensorDB) -> None:
    for part in range(4):
        fill(db, range(100 * part, 100 * part + 100), live=False)
    first, second, third, _ = (doc["_id"] for doc in db.database["segments"].find().sort("created", 1))
    db.data.find({"label": {"$lt": 80}}).delete()  # four fifths of the first
    db.data.find({"label": {"$gte": 100, "$lt": 110}}).delete()  # a little of the second
    db.data.find({"label": {"$gte": 200, "$lt": 300}}).delete()  # all of the third
    before = seen(db)
    stream = db.data.find({"dataset": "d"}).stream(batch_size=30, shuffle=True, fields=["image", "label"])
    batches = iter(stream)
    next(batches)
    report = db.data.compact("d")
    assert (report.samples, report.segments, report.dying, report.damaged) == (20, 1, 2, [])
    assert seen(db) == before
    dying = list(db.database["segments"].find({"state": "dying"}))
    assert {doc["_id"] for doc in dying} == {first, third}
    assert report.dying_bytes == sum(doc["bytes"] for doc in dying)
    assert all(db.warehouse.blobs.store(0).size(doc["key"]) == doc["bytes"] for doc in dying)
    assert second in {doc["_id"] for doc in db.database["segments"].find({"state": "live"})}
    check_references(db)
    for _ in range(30):  # into the next pass
        batch = next(batches)
        assert (batch["image"] == (batch["label"] % 251).astype(np.uint8)[:, None, None]).all()
    stream.close()
    again = db.data.compact("d")
    assert (again.samples, again.segments, again.dying) == (0, 0, 0)


def test_segments_of_empty_blobs_are_not_rewritten_for_ever(db: TensorDB) -> None:
    with db.data.writer("d") as writer:
        writer.add_many(raw=[b""] * 5 + [b"x"] * 5, label=np.arange(10))
    db.data.find({"label": {"$gte": 5}}).delete()
    db.data.compact("d")
    assert db.data.compact("d").segments == 0
    assert [sample["raw"] for sample in db.data.find()] == [b""] * 5


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_running_pass_and_a_resume_go_on_undisturbed(db: TensorDB, shuffle: bool) -> None:
    fill(db, range(100))
    selection = db.data.find({"dataset": "d"})
    options: dict[str, Any] = {"batch_size": 8, "fields": ["label", "image", "raw"], "shuffle": shuffle, "seed": 3}
    expected = [batch["label"].tolist() for batch in selection.stream(passes=1, **options)]
    stream = selection.stream(passes=1, **options)
    batches = iter(stream)
    found = [next(batches)["label"].tolist() for _ in range(3)]
    state = json.loads(json.dumps(stream.state_dict()))
    db.data.compact("d")
    found += [batch["label"].tolist() for batch in batches]
    assert found == expected
    resumed = selection.stream(passes=1, **options)
    resumed.load_state_dict(state)
    for batch, labels in zip(resumed, expected[3:], strict=True):
        assert batch["label"].tolist() == labels
        assert batch["raw"] == [values(i)["raw"] for i in labels]
    after = selection.stream(passes=1, **{**options, "shuffle": True})
    assert after._planner.plan().table.inline == {}  # the next pass reads segments only
    assert sum(len(batch["label"]) for batch in after) == 100


def test_what_is_damaged_stays_and_is_named(db: TensorDB) -> None:
    fill(db, range(30))
    fill(db, range(30, 60), live=False)
    bad = db.data.find({"label": 4}).first().id
    db.database["data"].update_one({"_id": bad}, {"$set": {"_tdb.b.image.x": 1}})
    db.data.find({"label": {"$gte": 40}}).delete()
    segment = db.database["segments"].find_one({"_id": db.data.find({"label": 33}).first()._references["image"]["k"]})
    assert segment is not None
    worse = db.data.find({"label": 33}).first()
    path = db.warehouse.blobs.store(0).local_path(segment["key"])
    assert path is not None
    with path.open("r+b") as file:
        file.seek(worse._references["image"]["o"])
        file.write(b"\xff\xfe")
    report = db.data.compact("d")
    assert len(report.damaged) == 2 and str(bad) in report.damaged[0] and str(worse.id) in report.damaged[1]
    assert report.samples == 38 and inline(db) == 1
    assert segment["_id"] in {doc["_id"] for doc in db.database["segments"].find({"state": "live"})}
    for sample in db.data.find({"label": {"$nin": [4, 33]}}):
        assert sample["raw"] == values(sample["label"])["raw"]


def test_a_segment_that_died_under_the_mover_gets_nothing_more(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(db, range(30))
    before = seen(db)
    monkeypatch.setattr(compact_module, "_CHUNK", 10)
    real, calls = Index.transaction, [0]

    def transaction(self: Index, fn: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:  # as another compaction would, that found it mostly empty; the first one announces this one
            self["segments"].update_many({"state": "live", "v": 1}, {"$set": {"state": "dying"}})
            self["segments"].update_many({"state": "writing"}, {"$set": {"state": "dying"}})
        return real(self, fn)

    monkeypatch.setattr(Index, "transaction", transaction)
    assert db.data.compact("d").samples == 10
    monkeypatch.undo()
    assert inline(db) == 20 and seen(db) == before
    assert db.data.compact("d").samples == 20
    assert inline(db) == 0 and seen(db) == before


def test_two_at_once(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(db, range(200))
    fill(db, range(200, 300), live=False)
    db.data.find({"label": {"$gte": 210}}).delete()
    before = seen(db)
    monkeypatch.setattr(compact_module, "_CHUNK", 20)
    monkeypatch.setattr(batch_module, "BATCH_SAMPLES", 70)
    barrier = threading.Barrier(2)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            barrier.wait()
            db.data.compact("d")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert seen(db) == before
    check_references(db)
    db.data.compact("d")
    assert inline(db) == 0 and seen(db) == before
    check_references(db)
    live = {doc["_id"] for doc in db.database["segments"].find({"state": "live"})}
    assert live == {part["k"] for doc in db.database["data"].find() for part in doc["_tdb"]["b"].values()}


def _write(db: TensorDB, number: int, each: int) -> None:
    fill(db, range(number * each, number * each + each))
    db.close()


def _compact(db: TensorDB, rounds: int) -> None:
    for _ in range(rounds):
        db.data.compact("d")
    db.close()


def test_beside_writers_and_a_follower(db: TensorDB) -> None:
    fill(db, range(0))
    fill(db, range(10_000, 10_001))
    each, context = 400, multiprocessing.get_context("spawn")
    stream = db.data.find({"dataset": "d"}).stream(batch_size=64, follow=True, fields=["label", "image"])
    processes = [context.Process(target=_write, args=(db, number, each)) for number in range(2)]
    processes += [context.Process(target=_compact, args=(db, 5)) for _ in range(2)]
    for process in processes:
        process.start()
    labels: list[int] = []
    for batch in stream:
        assert (batch["image"] == (batch["label"] % 251).astype(np.uint8)[:, None, None]).all()
        labels += batch["label"].tolist()
        if len(labels) > 2 * each:
            break
    stream.close()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sorted(labels) == [*range(2 * each), 10_000]
    db.data.compact("d")
    assert inline(db) == 0 and len(seen(db)) == 2 * each + 1
    check_references(db)


@pytest.mark.slow
def test_killed_at_any_point(db: TensorDB, mongo_uri: str) -> None:
    script = f"""
import sys
from tensordb_data import TensorDB
from tensordb_data.samples import compact
from tensordb_data.samples import write_batch as batch
batch.BATCH_SAMPLES, compact._CHUNK, compact._READ = 40, 7, 40
with TensorDB({mongo_uri!r}) as db:
    print("ready", flush=True)
    sys.stdin.readline()
    db.data.compact("d", progress=lambda *_: print("moved", flush=True))
"""
    rng = random.Random(0)
    for number in range(6):
        fill(db, range(500 * number, 500 * number + 200))
        fill(db, range(500 * number + 200, 500 * number + 300), live=False)
        db.data.find({"label": {"$gte": 500 * number + 220}}).delete()
        before = seen(db)
        child = warm.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdin is not None and child.stdout is not None
        child.stdout.readline()
        child.stdin.write(b"\n")
        child.stdin.flush()
        for _ in range(rng.randrange(3)):
            child.stdout.readline()
        timer = threading.Timer(rng.random() * 0.05, child.kill)
        timer.start()
        child.wait()
        timer.join()
        child.stdin.close()
        child.stdout.close()
        assert seen(db) == before
        check_references(db)
    db.data.compact("d")
    assert inline(db) == 0 and seen(db) == before
    check_references(db)


@pytest.mark.parametrize("blobs", ["gridfs://", "memory://"])
def test_other_stores(mongo_uri: str, blobs: str) -> None:
    with TensorDB(mongo_uri, blobs=blobs) as db:
        fill(db, range(40), compression="zstd")
        fill(db, range(40, 80), live=False, compression="zstd")
        db.data.find({"label": {"$gte": 45}}).delete()
        before = seen(db)
        assert db.data.compact("d").dying == 1
        assert inline(db) == 0 and seen(db) == before


def test_on_mongomock() -> None:
    with TensorDB(client=mongomock.MongoClient(), blobs="memory://") as db:
        fill(db, range(20))
        before = seen(db)
        db.data.compact("d")
        assert inline(db) == 0 and seen(db) == before


def test_the_command(db: TensorDB, mongo_uri: str) -> None:
    fill(db, range(20))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tensordb_data.cli.main", "compact", *arguments, "--db", mongo_uri]
        return warm.run(command, capture_output=True, text=True, timeout=60)

    done = run("d", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["dataset"], report["samples"], report["damaged"]) == ("d", 20, [])
    assert "d: 0 samples moved" in run("d").stdout
    missing = run("e")
    assert missing.returncode == 1 and "no dataset 'e'" in missing.stderr
