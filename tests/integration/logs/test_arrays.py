"""Arrays and histograms in rows of logs."""

from __future__ import annotations

import datetime as dt
from typing import Any

import mongomock
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pymongo.errors import AutoReconnect

from tensordb_data import CorruptBlobError, NotFoundError, QueryError, TensorDB
from tensordb_data.logs import insert
from tensordb_data.logs import writer as writer_module
from tensordb_data.logs.arrays import Histogram, logged, read_array, read_histogram, stored

IMAGE = np.random.default_rng(0).integers(0, 255, (60, 50, 3), np.uint8)


def test_arrays_come_back_as_they_were(db: TensorDB) -> None:
    weights = np.random.default_rng(0).normal(size=5000)
    with db.logs.run("r") as log:
        image = IMAGE.copy()
        log.write(1, image=image, small=image[:2, :3, 0], loss=0.5)
        image[:] = 0  # it was copied
        log.write(
            2, weights=weights, few=np.arange(4), tensor=torch.ones(30, 50, dtype=torch.bfloat16, requires_grad=True)
        )
        log.write(3, loss=torch.ones(1, 1), same=IMAGE)
    first, second, third = db.logs.find({"run": "r"}, sort=[("step", 1)])
    assert (first.array("image") == IMAGE).all() and first.array("image").dtype == np.uint8
    assert first.array("small").tolist() == IMAGE[:2, :3, 0].tolist() and first["loss"] == 0.5
    assert second.array("few").tolist() == [0, 1, 2, 3] and second.array("few").dtype == np.int64
    assert second.array("tensor").shape == (30, 50) and second.array("tensor").dtype == np.float32
    assert third["loss"] == 1.0 and (third.array("same") == IMAGE).all()
    found = second.histogram("weights")
    assert (sum(found.counts), found.n, found.min, found.max) == (5000, 5000, weights.min(), weights.max())
    assert found.mean == pytest.approx(weights.mean()) and len(found.edges) == 65 and found.nonfinite == 0
    assert second.histogram("few").counts[0] == 1 and "histogram of 5000 numbers" in repr(second)
    with pytest.raises(NotFoundError, match="its numbers were not kept"):
        second.array("weights")
    with pytest.raises(NotFoundError, match="several dimensions"):
        first.histogram("image")
    with pytest.raises(QueryError, match=r"'loss' of the row of run 'r' at step 1 is no array"):
        first.array("loss")
    # The picture is stored once, by its content; its row names it, and nothing is unknown to fsck.
    assert db.database["tensors"].count_documents({"run": "r"}) == 2
    assert len(db.database["logs"].find_one({"step": 1})["_tdb"]["tensors"]) == 1  # type: ignore[index]
    assert db.fsck().findings == []
    assert db.logs.find({"image": {"$exists": True}}).count() == 1 and db.storage().runs["r"] > 0


def test_a_histogram_that_was_counted_is_stored_as_it_is(db: TensorDB) -> None:
    counts, edges = np.histogram([0.5, 1.5, 1.6, 2.9], [0.0, 1.0, 2.0, 3.0])
    with db.logs.run("r") as log:
        log.write(1, hist=(counts, edges), nan=np.array([1.0, np.nan, np.inf, 3.0]), none=np.array([np.nan, np.nan]))
    row = db.logs.find().first()
    found = row.histogram("hist")
    assert (found.counts, found.edges, found.n) == ((1.0, 2.0, 1.0), (0.0, 1.0, 2.0, 3.0), 4.0)
    nan = row.histogram("nan")
    assert (nan.n, nan.nonfinite, nan.min, nan.max, nan.mean) == (2, 2, 1.0, 3.0, 2.0)
    assert row.histogram("none") == Histogram((), (0.0,), 0.0, None, None, None, 2)
    assert "nonfinite" in nan._repr_html_() and "histogram" in row._repr_html_()


def test_gc_keeps_what_rows_have_and_removes_the_rest(db: TensorDB) -> None:
    for run in ("keep", "drop"):
        with db.logs.run(run) as log:
            log.write(1, image=IMAGE + (run == "drop"))
    old = dt.datetime(2000, 1, 1)
    db.logs.find({"run": "drop"}).delete()
    db.database["tensors"].update_many({}, {"$set": {"created": old}})
    db.gc()
    db.database["tensors"].update_many({"state": "dying"}, {"$set": {"dying": old}})
    collected = db.gc()
    assert collected.removed == 1 and (db.logs.find().first().array("image") == IMAGE).all()
    assert db.fsck().findings == []
    db.database["tensors"].delete_many({})
    assert next(found.kind for found in db.fsck().findings) == "dangling reference"
    with pytest.raises(CorruptBlobError, match="row of run 'keep' at step 1"):
        db.logs.find().first().array("image")


def test_rows_with_arrays_arrive_once_whatever_the_server_does(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    store = insert.store_tensors

    def flaky(*args: Any) -> int:
        calls.append(1)
        found = store(*args)
        if len(calls) == 1:
            raise AutoReconnect("the answer is lost")
        return found

    monkeypatch.setattr(insert, "store_tensors", flaky)
    monkeypatch.setattr(writer_module, "_RETRY", (0.001, 0.001))
    with db.logs.run("r") as log:
        for step in range(5):
            log.write(step, image=IMAGE + step)
            log.write(step, loss=1.0)
        log.flush()
    assert db.logs.find({"run": "r"}).count() == 10 and len(calls) == 1


def test_one_that_the_server_refuses_is_left_out_alone(db: TensorDB) -> None:
    log = db.logs.run("r")
    with pytest.warns(UserWarning, match="the row of step 1 is left out"):
        for step in range(3):
            log.write(step, image=IMAGE, text="x" * (17 << 20) if step == 1 else "")
        with pytest.raises(Exception, match="1 rows were lost"):
            log.close()
    assert sorted(row["step"] for row in db.logs.find()) == [0, 2]


def test_arrays_wait_for_room(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "_ROOM", 2 * IMAGE.nbytes)
    monkeypatch.setattr(writer_module, "_AT_ONCE", IMAGE.nbytes)
    with db.logs.run("r") as log:
        for step in range(8):
            log.write(step, image=IMAGE + step)
    assert db.logs.find().count() == 8 and log.dropped == 0


def test_tables_name_arrays(db: TensorDB, tmp_path: Any) -> None:
    with db.logs.run("r") as log:
        log.write(1, image=IMAGE, hist=np.arange(9.0))
    row = db.logs.find().to_arrow().to_pylist()[0]
    assert row["image"] == "array |u1 [60, 50, 3]" and row["hist"].startswith("histogram of 9 numbers from 0.0")
    db.logs.find().to_csv(tmp_path / "rows.csv")
    assert "array |u1" in (tmp_path / "rows.csv").read_text()
    assert db.logs.find().to_tensorboard(tmp_path / "events") == 1
    (path,) = (tmp_path / "events").rglob("events*")
    (value,) = [value for event in summary_iterator(path) for value in event.summary.value]
    assert (value.tag, value.histo.num, value.histo.min, value.histo.max) == ("hist", 9, 0, 8)
    assert sum(value.histo.bucket) == 9 and value.histo.sum == 36


def summary_iterator(path: Any) -> Any:
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    return LegacyEventFileLoader(str(path)).Load()


def test_without_a_server() -> None:
    db = TensorDB(client=mongomock.MongoClient(), blobs="memory://")
    with db.logs.run("r") as log:
        log.write(1, image=IMAGE)
    assert (db.logs.find().first().array("image") == IMAGE).all()


@given(hnp.arrays(st.sampled_from(["u1", "i8", "f4", "?"]), hnp.array_shapes(max_dims=3, max_side=6)))
def test_small_arrays_are_in_the_row(array: np.ndarray[Any, Any]) -> None:
    given_ = logged("x", array)
    if array.size == 1:
        assert given_ is None
        return
    assert given_ is not None
    value, tensors = stored("x", given_)
    found = read_array(None, value, "x")  # type: ignore[arg-type]  # nothing is read from the warehouse
    assert not tensors and found.dtype == array.dtype and found.tobytes() == array.tobytes()
    if array.ndim == 1:
        counted = read_histogram(value, "x")
        assert sum(counted.counts) == counted.n == np.isfinite(array.astype(float)).sum()


@pytest.mark.parametrize("value", [
    {"array": 7}, {"array": {"dtype": "O", "shape": [1], "data": b"x" * 8}},
    {"array": {"dtype": "<f4", "shape": [2], "data": b""}},
    {"array": {"dtype": "|u1", "shape": [-1], "data": b""}}, {"array": {"dtype": "|u1", "shape": [2**40], "data": b""}},
    {"array": {"dtype": "no", "shape": [1], "data": b"x"}}, {"array": {"shape": "x"}},
])  # fmt: skip
def test_what_another_tool_has_written_is_an_error(value: Any) -> None:
    with pytest.raises(CorruptBlobError, match="x is damaged"):
        read_array(None, value, "x")  # type: ignore[arg-type]
    with pytest.raises(CorruptBlobError, match="x is damaged"):
        read_histogram({"histogram": {"counts": [1], "edges": [1]}}, "x")
