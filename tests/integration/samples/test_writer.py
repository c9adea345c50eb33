"""The writer against a real server: what is durable, what is visible, what is refused."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
from bson import ObjectId

from tensordb_data import (
    Array,
    Bytes,
    DuplicateError,
    QueryError,
    Scalar,
    SchemaError,
    StorageError,
    TensorDB,
    TensorDBError,
    Text,
)
from tensordb_data.samples import commit as commit_module
from tensordb_data.samples import write_batch as batch_module
from tensordb_data.warehouse.index import Index
from tests import warm


def sequences(db: TensorDB, dataset: str) -> list[int]:
    found = db.database["data"].find({"_tdb.p": db.project, "dataset": dataset}).sort("_tdb.s", 1)
    return [doc["_tdb"]["s"] for doc in found]


def test_values_of_every_kind_come_back(db: TensorDB) -> None:
    sample: dict[str, Any] = {
        "image": np.arange(12, dtype=">i4").reshape(3, 4)[:, ::2],
        "empty": np.zeros((0, 3), np.float32),
        "nan": np.array([np.nan, np.inf], np.float16),
        "raw": b"\x00\x01",
        "label": np.int64(2**63 - 1),
        "score": float("nan"),
        "flag": np.bool_(True),
        "zero_d": np.array(3.5),
        "when": dt.datetime(2024, 5, 1, 12, 0, 0, 123456),
        "größe (mm)": 1.5,
        "meta": {"a": [1, {"b": None}], "像": "素"},
        "note": "text",
    }
    with db.data.writer("d") as writer:
        id = writer.add(tags=["a", "b", "a"], **sample)
    found = db.data.find({"_id": id}).first()
    assert found.id == id and found.tags == ["a", "b"] and found.dataset == "d"
    for name in ("image", "empty", "nan"):
        np.testing.assert_array_equal(found[name], sample[name])
    assert found["image"].dtype == np.int32
    assert (found["raw"], found["label"], found["flag"]) == (b"\x00\x01", 2**63 - 1, True)
    assert np.isnan(found["score"]) and found["zero_d"] == 3.5
    assert found["when"] == dt.datetime(2024, 5, 1, 12, 0, 0, 123000)
    assert found["größe (mm)"] == 1.5 and found["meta"] == sample["meta"]
    assert set(found) == {"_id", "dataset", "tags", *sample}
    with pytest.raises(KeyError, match="nothing"):
        found["nothing"]


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
                                   "float16", "float32", "float64", "complex64", "complex128"])  # fmt: skip
def test_columns_of_every_dtype_come_back(db: TensorDB, dtype: str) -> None:
    column = (np.arange(24).reshape(4, 2, 3) % 3).astype(dtype)
    with db.data.writer("d") as writer:
        ids = writer.add_many(x=column, n=np.arange(4), tags=[["even"], [], ["even"], []])
    found = db.data.find().all()
    assert [sample.id for sample in found] == ids
    assert [sample.tags for sample in found] == [["even"], [], ["even"], []]
    np.testing.assert_array_equal(np.stack([sample["x"] for sample in found]), column)
    assert found[0]["x"].dtype == np.dtype(dtype)


def test_compression_is_kept_only_where_it_pays(db: TensorDB) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (100, 100), np.uint8)
    schema = {"x": Array("uint8", (100, 100)), "t": Text(), "b": Bytes()}
    with db.data.writer("d", schema=schema, compression="zstd:3") as writer:
        writer.add(x=np.zeros((100, 100), np.uint8), t="a" * 1000, b=b"b" * 1000)
        writer.add_many(x=noise[None], t=["short"], b=[b"\x00\xff"])
    docs = list(db.database["data"].find().sort("_tdb.s", 1))
    packed = [{name: reference.get("z", False) for name, reference in doc["_tdb"]["b"].items()} for doc in docs]
    assert packed == [{"x": True, "t": True, "b": True}, {"x": False, "t": False, "b": False}]
    first, second = db.data.find().all()
    assert not first["x"].any() and first["t"] == "a" * 1000 and first["b"] == b"b" * 1000
    np.testing.assert_array_equal(second["x"], noise)
    with pytest.raises(QueryError, match="zstd"):
        db.data.writer("d", compression="gzip")
    for odd in (0, -1, "soon", True, float("nan")):
        with pytest.raises(QueryError, match="flush_every is a positive number"):
            db.data.writer("d", flush_every=odd)  # type: ignore[arg-type]


def test_invisible_until_flushed(db: TensorDB) -> None:
    with db.data.writer("d") as writer:
        writer.add(x=1)
        assert db.data.find().count() == 0
        assert (writer.written, writer.pending) == (0, 1)
        writer.flush()
        assert db.data.find().count() == 1
        assert (writer.written, writer.pending) == (1, 0)
        writer.add(x=2)
    assert db.data.find().count() == 2 and writer.written == 2
    with pytest.raises(TensorDBError, match="closed"):
        writer.add(x=3)
    writer.close()


def test_flushes_in_time_without_further_calls(db: TensorDB) -> None:
    with db.data.writer("d", flush_every=0.01) as writer:
        watch = db.data.find().watch()
        writer.add(x=1)
        assert next(watch)["x"] == 1
        watch.close()
        buffer = writer._buffer
        with buffer.changed:
            while writer.pending:  # readers see it a moment before the writer counts it
                buffer.changed.wait()
        assert writer.written == 1


def test_large_writes_are_cut_into_commits(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "SEGMENT_BYTES", 1000)
    with db.data.writer("d") as writer:
        writer.add_many(x=np.arange(100 * 40, dtype=np.uint8).reshape(100, 40), n=np.arange(100))
        for i in range(50):
            writer.add(x=np.full(40, i, np.uint8), n=100 + i)
    assert db.database["segments"].count_documents({"state": "live"}) >= 5
    assert sequences(db, "d") == list(range(1, 151))
    assert [sample["n"] for sample in db.data.find()] == list(range(150))


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_an_exception_keeps_what_was_flushed_and_says_how_much(db: TensorDB, kind: type[BaseException]) -> None:
    with pytest.raises(kind) as caught:
        with db.data.writer("d") as writer:
            writer.add_many(x=np.arange(3))
            writer.flush()
            writer.add_many(x=np.arange(2))
            raise kind("boom")
    assert db.data.find().count() == 3
    if sys.version_info >= (3, 11):
        assert "3 samples were committed and stay, 2 pending ones were dropped" in caught.value.__notes__[0]


def test_duplicate_ids_commit_nothing_of_their_flush(db: TensorDB) -> None:
    id = ObjectId()
    with db.data.writer("d") as writer:
        writer.add(_id=id, x=np.zeros(3))
    before = list(db.warehouse.blobs.store(0).list(""))
    with pytest.raises(DuplicateError, match=f"{id} exists already; nothing"):
        with db.data.writer("d") as writer:
            writer.add(x=np.ones(3))
            writer.add(_id=id, x=np.ones(3))
    assert sequences(db, "d") == [1]
    assert list(db.warehouse.blobs.store(0).list("")) == before
    assert db.warehouse.datasets.versions()["d"] == (1, 0)
    with pytest.raises(DuplicateError), db.data.writer("e") as writer:
        writer.add_many(_id=[id, ObjectId()], x=[1, 2])


def test_a_failing_store_commits_nothing(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    def put(key: str, parts: Any) -> None:
        raise StorageError("disk full")

    with pytest.raises(StorageError, match="disk full"):
        with db.data.writer("d") as writer:
            writer.add(x=np.zeros(3))
            monkeypatch.setattr(db.warehouse.blobs.store(0), "put", put)
    assert db.data.find().count() == 0
    assert db.database["segments"].count_documents({}) == 0


def test_an_interrupted_commit_is_counted_by_what_the_database_says(
    db: TensorDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Index.transaction

    def interrupted(self: Index, fn: Any) -> Any:
        real(self, fn)
        raise KeyboardInterrupt

    writer = db.data.writer("d")
    writer.add(x=1)
    monkeypatch.setattr(Index, "transaction", interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer.flush()
    monkeypatch.undo()
    assert writer.written == 1
    writer.close()
    assert sequences(db, "d") == [1]


@pytest.mark.parametrize("blobs", [True, False])
def test_a_commit_whose_answer_was_lost_is_not_taken_for_a_duplicate(
    db: TensorDB, monkeypatch: pytest.MonkeyPatch, blobs: bool
) -> None:
    real = Index.transaction

    def twice(self: Index, fn: Any) -> Any:
        real(self, fn)
        return real(self, fn)

    with db.data.writer("d") as writer:
        writer.add_many(x=np.zeros((3, 2)) if blobs else np.arange(3))
        monkeypatch.setattr(Index, "transaction", twice)
        writer.flush()
        monkeypatch.undo()
        assert writer.written == 3
    assert sequences(db, "d") == [1, 2, 3]
    assert all(np.sum(sample["x"]) >= 0 for sample in db.data.find())


def test_the_schema_is_enforced_by_every_later_writer(db: TensorDB) -> None:
    with db.data.writer("ct") as writer:
        writer.add(scan=np.zeros((2, 2), np.int16), label=1)
        with pytest.raises(SchemaError, match=r"dataset 'ct', field 'scan': expected int16.*found.*uint8"):
            writer.add(scan=np.zeros((2, 2), np.uint8), label=1)
        with pytest.raises(SchemaError, match="for shapes that vary"):
            writer.add(scan=np.zeros((2, 3), np.int16), label=1)
        with pytest.raises(SchemaError, match=r"field 'label'.*found nothing"):
            writer.add(scan=np.zeros((2, 2), np.int16))
        with pytest.raises(SchemaError, match=r"field 'mask'.*found a new one"):
            writer.add(scan=np.zeros((2, 2), np.int16), label=1, mask=b"x")
        writer.add(scan=np.ones((2, 2), np.int16), label=2)
    with db.data.writer("ct") as writer, pytest.raises(SchemaError, match="field 'label': expected int, found str"):
        writer.add(scan=np.zeros((2, 2), np.int16), label="x")
    assert db.data.find().count() == 2
    with pytest.raises(SchemaError, match="as stored"):
        db.data.writer("ct", schema={"scan": Array("int16", (2, 2)), "label": float})
    with db.data.writer("ct", schema={"scan": Array("int16", (2, 2)), "label": int, "note": Text(optional=True)}) as w:
        w.add(scan=np.ones((2, 2), np.int16), label=3, note="hello")
    with db.data.writer("ct") as writer:
        writer.add(scan=np.ones((2, 2), np.int16), label=4)
    assert [sample.get("note") for sample in db.data.find()] == [None, None, "hello", None]
    schema = db.data.schema("ct")
    assert schema is not None and schema["note"] == Text(optional=True)


def test_nothing_is_decided_until_samples_are_there(db: TensorDB) -> None:
    with pytest.raises(RuntimeError), db.data.writer("d") as writer:
        writer.add(x="a mistake")
        raise RuntimeError
    assert db.data.schema("d") is None
    with db.data.writer("d") as writer:
        writer.add(x=1)
    assert db.data.schema("d") == {"x": Scalar("int")}


def test_an_emptied_dataset_can_have_another_schema(db: TensorDB) -> None:
    with db.data.writer("d") as writer:
        writer.add(x=1)
    old = db.data.writer("d")
    db.data.find({"dataset": "d"}).delete()
    with db.data.writer("d", schema={"y": str}) as writer:
        writer.add(y="a")
    assert sequences(db, "d") == [2]
    old.add(x=2)
    with pytest.raises(SchemaError, match="field 'x'"):
        old.flush()
    old.close()
    assert [dict(sample)["y"] for sample in db.data.find()] == ["a"]


def test_first_writers_at_the_same_time_agree(db: TensorDB) -> None:
    one, two, three = db.data.writer("d"), db.data.writer("d"), db.data.writer("d")
    one.add(x=1)
    two.add(x=2)
    three.add(x=2.5)
    one.close()
    two.close()
    with pytest.raises(SchemaError, match=r"field 'x': expected Scalar.*int.*found"):
        three.close()
    assert sequences(db, "d") == [1, 2]


def test_threads_share_a_writer(db: TensorDB) -> None:
    with db.data.writer("d", flush_every=0.01) as writer:
        threads = [threading.Thread(target=lambda: [writer.add(x=np.zeros(4)) for _ in range(50)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sequences(db, "d") == list(range(1, 201))


def _write_many(db: TensorDB, number: int) -> None:
    with db.data.writer("d") as writer:
        for i in range(10):
            writer.add_many(x=np.full((20, 3), number, np.uint8), n=np.arange(20) + 20 * i, who=number)
            writer.flush()
    db.close()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_write_one_dataset_at_the_same_time(db: TensorDB, method: str) -> None:
    context = multiprocessing.get_context(method)
    processes = [context.Process(target=_write_many, args=(db, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sequences(db, "d") == list(range(1, 801))
    for number in range(4):
        mine = db.data.find({"who": number}).all()
        assert [sample["n"] for sample in mine] == list(range(200))
        assert all((sample["x"] == number).all() for sample in mine)


def test_a_forked_writer_is_refused(db: TensorDB) -> None:
    writer = db.data.writer("d")
    writer.add(x=1)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            writer.add(x=2)
        except TensorDBError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    assert b"forked process" in os.read(read, 1000)
    os.close(read)
    writer.close()
    assert db.data.find().count() == 1


def test_only_whole_commits_are_visible_after_kill_9(db: TensorDB, mongo_uri: str) -> None:
    script = f"""
import sys
import numpy as np
from tensordb_data import TensorDB
db = TensorDB({mongo_uri!r})
writer = db.data.writer("d", flush_every=None)
i = 0
while True:
    writer.add_many(x=np.full((37, 100), i, np.uint16), n=i, attempt=int(sys.argv[1]))
    writer.flush()
    print(i, flush=True)
    i += 1
"""
    for attempt in range(3):
        child = warm.Popen([sys.executable, "-c", script, str(attempt)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        acknowledged = [child.stdout.readline() for _ in range(5)]
        child.send_signal(signal.SIGKILL)
        acknowledged += child.stdout.readlines()
        child.wait()
        child.stdout.close()
        added = db.data.find({"attempt": attempt}).count()  # the commit of one before may have come late
        whole = len([line for line in acknowledged if line.endswith("\n")])
        assert added % 37 == 0 and whole <= added // 37 <= whole + 1
    assert sequences(db, "d") == list(range(1, db.data.find().count() + 1))
    assert all((sample["x"] == sample["n"]).all() for sample in db.data.find())


def test_conflicting_transactions_are_retried(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    other = db.data.writer("d")
    other.add(x=1)
    other.flush()
    real = commit_module._Body._merged_schema
    calls = []

    def agreed(self: Any, counter: Any, session: Any) -> Any:
        if not calls:
            calls.append(1)
            # As if another writer had been faster: the server ends this transaction with a transient error.
            from pymongo.errors import OperationFailure

            error = OperationFailure("conflict", 112, {"errorLabels": ["TransientTransactionError"]})
            raise error
        calls.append(1)
        return real(self, counter, session)

    monkeypatch.setattr(commit_module._Body, "_merged_schema", agreed)
    other.add(x=2)
    other.close()
    assert len(calls) == 2 and sequences(db, "d") == [1, 2]


@pytest.mark.parametrize("blobs", ["gridfs://", "memory://"])
def test_other_stores(mongo_uri: str, blobs: str) -> None:
    with TensorDB(mongo_uri, blobs=blobs) as db:
        with db.data.writer("d") as writer:
            writer.add_many(x=np.arange(20).reshape(5, 4))
        np.testing.assert_array_equal(np.stack([sample["x"] for sample in db.data.find()]), np.arange(20).reshape(5, 4))


def test_an_object_store(mongo_uri: str, s3: str) -> None:
    with TensorDB(mongo_uri, blobs=s3) as db:
        with db.data.writer("d", compression="zstd") as writer:
            writer.add_many(x=np.zeros((5, 1000)))
        assert all(not sample["x"].any() for sample in db.data.find())


def test_nothing_can_be_added_under_a_wrong_name(db: TensorDB) -> None:
    with db.data.writer("d") as writer:
        for name in ("", "$a", "a.b", "a\0", "_tdb", "dataset"):
            with pytest.raises(SchemaError):
                writer.add(**{name: 1})
        with pytest.raises(SchemaError, match="no field with a value"):
            writer.add()
        assert writer.add_many(x=[]) == []
        with pytest.raises(Exception, match="non-empty string"):
            writer.add(x=1, tags=[""])
    with pytest.raises(TensorDBError, match="non-empty"):
        db.data.writer("")
    assert db.data.find().count() == 0
