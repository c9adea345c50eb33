"""`db.data.feedback`: numbers of samples are stored, merged over processes, read, and deleted with their run."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import mongomock
import numpy as np
import pytest
from bson import ObjectId

from tensordb_data import Feedback, NotFoundError, QueryError, StorageError, TensorDB
from tensordb_data.errors import ReadOnlyError
from tensordb_data.feedback.buffer import FeedbackBuffer, feedback_buffer
from tensordb_data.feedback.moments import moments_of
from tensordb_data.feedback.store import (
    chunk_documents,
    insert_chunk,
    merge_chunks,
    merge_if_due,
    read_moments,
    version_of,
)


def fill(db: TensorDB, n: int = 8, dataset: str = "d") -> list[ObjectId]:
    with db.data.writer(dataset) as w:
        w.add_many(x=np.arange(n), label=np.arange(n) % 2)
    return [sample.id for sample in db.data.find({"dataset": dataset})]


def flush(db: TensorDB) -> None:
    feedback_buffer(db.warehouse).flush()


def chunks_of(db: TensorDB) -> int:
    return db.database["feedback"].count_documents({"g": {"$ne": "state"}})


def test_what_a_run_tells_of_samples(db):
    ids = fill(db)
    sel = db.data.find({"dataset": "d"})
    db.data.feedback("r", ids[:4], loss=np.array([1.0, 2, 3, np.nan]), norm=[1, 1, 1, np.inf])
    db.data.feedback("r", [ids[0], ids[0], ids[7]], loss=np.array([2.0, 6, 9]))
    table = sel.feedback_of("r", "loss")
    assert table.count.tolist() == [3, 1, 1, 0, 0, 0, 0, 1]
    assert table.mean[[0, 1, 2, 7]].tolist() == [3, 2, 3, 9] and np.isnan(table.mean[3:7]).all()
    assert table.last[0] == 6 and table.variance[0] == pytest.approx(np.var([1, 2, 6])) and table.variance[1] == 0
    assert table.ids == ids and len(table) == 8 and "4 of 8" in repr(table) and "highest mean" in table._repr_html_()
    assert table.highest(2) == [ids[7], ids[2]] and table.lowest(1, "last") == [ids[1]]
    assert table.where(table.mean > 2) == [ids[0], ids[2], ids[7]]
    assert table.to_pandas()["count"].tolist() == table.count.tolist()
    assert db.data.find({"_id": {"$in": table.highest(2)}}).count() == 2
    assert db.data.find({"dataset": "d"}, sort=[("x", -1)], limit=2).feedback_of("r", "loss").mean[0] == 9
    assert sel.feedback_of("r", "norm").count.sum() == 3
    for wrong in (lambda: table.highest(0), lambda: table.where(table.mean), lambda: table.highest(1, "worst")):  # type: ignore[arg-type,return-value]
        with pytest.raises(QueryError, match=r"ound"):
            wrong()


def test_what_is_refused(db):
    ids = fill(db)
    for run, given, numbers in (
        ("r", ids, {}), ("", ids, {"loss": np.zeros(8)}), (5, ids, {"loss": np.zeros(8)}),
        ("r", ids, {"": np.zeros(8)}),
        ("r", ids[:3], {"loss": np.zeros(8)}), ("r", ids, {"loss": np.zeros(())}), ("r", "x", {"loss": [1]}),
    ):  # fmt: skip
        with pytest.raises(QueryError):
            db.data.feedback(run, given, **numbers)
    assert not feedback_buffer(db.warehouse).fed
    sel = db.data.find({"dataset": "d"})
    with pytest.raises(NotFoundError, match="there is no run 'r' in project 'default': begin it first"):
        sel.feedback_of("r", "loss")
    with db.logs.run("r") as log:
        log.write(1, loss=0.5)
    assert sel.feedback_of("r", "loss").count.sum() == 0
    db.data.feedback("r", ids, loss=np.ones(8))
    with pytest.raises(NotFoundError, match="run 'r' has told no 'los' of samples; it has told loss"):
        sel.feedback_of("r", "los")
    with pytest.raises(QueryError, match=r"db\.data\.find"):
        db.logs.find({"run": "r"}).feedback_of("r", "loss")


def test_filters_and_sorts_say_what_to_do_instead(db):
    of = Feedback("r", "loss")
    for query in ({"filter": {of: {"$gt": 1}}}, {"filter": {"x": of}}, {"sort": [(of, -1)]}):
        with pytest.raises(QueryError, match="feedback_of"):
            db.data.find(**query)


def test_nothing_is_lost_at_exit_or_close_and_little_at_a_kill(db, mongo_uri, warehouse_dir):
    ids = fill(db, 4)
    script = (
        "import os, signal, sys; from bson import ObjectId; from tensordb_data import TensorDB\n"
        "from tensordb_data.feedback.buffer import feedback_buffer\n"
        "db = TensorDB(sys.argv[1]); ids = [ObjectId(id) for id in sys.argv[3:]]\n"
        "db.data.feedback('r', ids, loss=[1.0] * len(ids))\n"
        "if sys.argv[2] == 'close': db.close()\n"
        "if sys.argv[2] == 'kill':\n"
        "    feedback_buffer(db.warehouse).flush(); db.data.feedback('r', ids, loss=[5.0] * len(ids))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", script, mongo_uri, end, *map(str, ids)])
        for end in ("close", "exit", "kill")
    ]
    assert [run.wait() for run in runs] == [0, 0, -signal.SIGKILL]
    table = db.data.find({"dataset": "d"}).feedback_of("r", "loss")
    # What waited at the kill is lost, unless a second had passed by then.
    assert (table.count.tolist(), table.mean.tolist()) in (([3] * 4, [1] * 4), ([4] * 4, [2] * 4))


def test_a_run_takes_its_feedback_with_it_and_no_other(db):
    ids = fill(db)
    for run in ("a", "b"):
        db.data.feedback(run, ids, loss=np.ones(8))
    with TensorDB(client=db.database.client, db_name=db.database.name, project="other", blobs="memory://") as other:
        other.data.feedback("a", ids, loss=np.ones(8))
        flush(other)
        db.data.feedback("a", ids, loss=np.ones(8))
        assert db.runs({"name": "a"}).delete() == 1  # pending numbers do not bring it back
        assert db.database["feedback"].distinct("r", {"p": "default"}) == ["b"]
        assert db.database["feedback"].distinct("r", {"p": "other"}) == ["a"]
    db.data.rename("d", "e")
    assert db.data.find({"dataset": "e"}).feedback_of("b", "loss").count.tolist() == [1] * 8


def test_feedback_of_deleted_samples_goes_with_a_gc(db):
    ids = fill(db)
    for name in ("loss", "norm"):
        db.data.feedback("r", ids, **{name: np.ones(8)})
    flush(db)
    assert db.gc(grace=0).feedback == 0
    db.data.find({"x": {"$lt": 3}}).delete()
    assert db.gc(grace=0, dry_run=True).feedback == 6
    assert len(read_moments(db.warehouse, "r", "loss")[0]) == 8
    assert db.gc(grace=0).feedback == 6 and db.gc(grace=0).feedback == 0
    for name in ("loss", "norm"):
        assert read_moments(db.warehouse, "r", name)[0].ids.tobytes() == b"".join(id.binary for id in ids[3:])


def test_chunks_are_merged_and_nothing_changes_by_it(db, monkeypatch):
    ids = fill(db)
    rng = np.random.default_rng(0)
    told: dict[int, list[float]] = {}
    for _ in range(70):
        rows = rng.integers(0, 8, 5)
        numbers = rng.normal(size=5)
        for row, number in zip(rows.tolist(), numbers.tolist(), strict=True):
            told.setdefault(row, []).append(number)
        moments = moments_of(np.array([ids[row].binary for row in rows], "S12"), numbers)
        for document in chunk_documents(db.warehouse, "r", "loss", moments):
            insert_chunk(db.warehouse, document)
            insert_chunk(db.warehouse, document)  # an answer was lost
    before, version = read_moments(db.warehouse, "r", "loss")
    assert version == version_of(db.warehouse, "r", "loss") == (None, 70)
    monkeypatch.setattr("tensordb_data.feedback.store.MOST", 3)
    assert merge_if_due(db.warehouse, "r", "loss") and chunks_of(db) == 3
    assert not merge_if_due(db.warehouse, "r", "loss")
    after, version = read_moments(db.warehouse, "r", "loss")
    assert version[0] is not None and version == version_of(db.warehouse, "r", "loss")
    for found in (before, after):
        for row, numbers in told.items():
            at = np.searchsorted(found.ids, np.array(ids[row].binary, "S12"))
            assert found.count[at] == len(numbers) and found.last[at] == numbers[-1]
            assert found.mean[at] == pytest.approx(np.mean(numbers))
            assert found.value("variance")[at] == pytest.approx(np.var(numbers))


def test_a_chunk_that_was_merged_is_not_added_again(db):
    ids = np.array([id.binary for id in fill(db)], "S12")
    (document,) = chunk_documents(db.warehouse, "r", "loss", moments_of(ids, np.ones(8)))
    insert_chunk(db.warehouse, document)
    assert merge_chunks(db.warehouse, "r", "loss")
    insert_chunk(db.warehouse, document)  # by a process that did not get the answer
    assert read_moments(db.warehouse, "r", "loss")[0].count.tolist() == [1] * 8


def test_of_two_merges_one_counts(db, monkeypatch):
    ids = np.array([id.binary for id in fill(db)], "S12")
    for number in (1.0, 2.0):
        for document in chunk_documents(db.warehouse, "r", "loss", moments_of(ids, np.full(8, number))):
            insert_chunk(db.warehouse, document)
    real = insert_chunk
    again = [True]

    def other_is_faster(warehouse: Any, document: Any) -> None:
        real(warehouse, document)
        if again and again.pop():
            assert merge_chunks(db.warehouse, "r", "loss")

    monkeypatch.setattr("tensordb_data.feedback.store.insert_chunk", other_is_faster)
    assert not merge_chunks(db.warehouse, "r", "loss")
    assert chunks_of(db) == 1
    found, _ = read_moments(db.warehouse, "r", "loss")
    assert found.count.tolist() == [2] * 8 and found.mean.tolist() == [1.5] * 8
    # What a merge has left that was killed counts for nothing, and goes with a later one.
    for document in chunk_documents(db.warehouse, "r", "loss", found):
        real(db.warehouse, {**document, "g": ObjectId(), "at": document["at"].replace(year=2020)})
    assert read_moments(db.warehouse, "r", "loss")[0].count.tolist() == [2] * 8
    assert merge_chunks(db.warehouse, "r", "loss") and chunks_of(db) == 1


@pytest.mark.parametrize(
    "change", [{"ids": b"abc"}, {"ids": 5}, {"count": b""}, {"mean": "x"}, {"count": bytes(64)}, {"last": None}]
)
def test_a_document_that_another_tool_has_written(db, change):
    ids = fill(db)
    db.data.feedback("r", ids, loss=np.ones(8))
    flush(db)
    db.database["feedback"].update_one({"g": None}, {"$set": change})
    with pytest.raises(StorageError, match="feedback 'loss' of run 'r' is damaged, in the document"):
        db.data.find({"dataset": "d"}).feedback_of("r", "loss")
    assert db.runs({"name": "r"}).delete() == 1


def test_a_server_that_is_away_loses_nothing(db, monkeypatch):
    ids = fill(db)
    real = FeedbackBuffer._store
    down = [True]

    def store(self: FeedbackBuffer, together: Any) -> None:
        if down:
            raise OSError("away")
        real(self, together)

    monkeypatch.setattr(FeedbackBuffer, "_store", store)
    monkeypatch.setattr("tensordb_data.feedback.buffer._FULL", 10)
    for number in range(4):
        db.data.feedback("r", ids, loss=np.full(8, float(number)))
    with pytest.raises(StorageError, match="does not take the feedback yet: away"):
        flush(db)
    db.data.feedback("r", ids, loss=np.full(8, 4.0))
    down.clear()
    table = db.data.find({"dataset": "d"}).feedback_of("r", "loss")
    assert table.count.tolist() == [5] * 8 and table.mean.tolist() == [2] * 8 and table.last.tolist() == [4] * 8
    down.append(True)
    db.data.feedback("r", ids, loss=np.ones(8))
    with pytest.raises(StorageError, match="feedback of 'r' was lost: away"):
        feedback_buffer(db.warehouse).close()
    with pytest.raises(StorageError, match="takes no feedback any more"):
        db.data.feedback("r", ids, loss=np.ones(8))


def test_a_connection_that_only_reads(db, mongo_uri):
    ids = fill(db)
    db.data.feedback("r", ids, loss=np.ones(8))
    flush(db)
    with TensorDB(mongo_uri, read_only=True) as reader:
        sel = reader.data.find({"dataset": "d"})
        assert sel.feedback_of("r", "loss").count.sum() == 8
        assert len(next(iter(sel.stream(batch_size=4, weights=Feedback("r", "loss"))))["x"]) == 4
        with pytest.raises(ReadOnlyError, match="takes no feedback"):
            reader.data.feedback("r", ids, loss=np.ones(8))


def test_what_was_lost_does_not_hide_an_error(mongo_uri, warehouse_dir, monkeypatch):
    def fail(self: FeedbackBuffer, together: Any) -> None:
        raise OSError("away")

    monkeypatch.setattr(FeedbackBuffer, "_store", fail)
    with pytest.warns(UserWarning, match="feedback of 'r' was lost"), pytest.raises(ZeroDivisionError):
        with TensorDB(mongo_uri, blobs=f"file://{warehouse_dir}/blobs") as db:
            db.data.feedback("r", [ObjectId()], loss=[1.0])
            raise ZeroDivisionError


def test_feedback_without_a_server():
    with TensorDB(client=mongomock.MongoClient(), blobs="memory://") as db:
        ids = fill(db)
        db.data.feedback("r", ids, loss=np.arange(8))
        assert db.data.find({"dataset": "d"}).feedback_of("r", "loss").mean.tolist() == list(range(8))
