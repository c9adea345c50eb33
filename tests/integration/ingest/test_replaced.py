"""Blobs that an update has replaced: a stream gives the old bytes, or stops, and never other bytes under a label."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensordb_data import Array, SampleError, TensorDB
from tensordb_data.params.load import load_parts
from tensordb_data.params.save import save_parameters
from tensordb_data.tensors.snapshot import view


def rows(values: range, add: int = 0) -> list[dict[str, Any]]:
    return [{"id": i, "label": i + add, "x": np.full(3, i + add, np.int64)} for i in values]


def fill(db: TensorDB, n: int = 8) -> None:
    db.data.ingest(rows(range(n)), "t", key="id")


def replace(db: TensorDB, n: int = 8) -> None:
    report = db.data.ingest(rows(range(n), 100), "t", key="id")
    assert (report.added, report.updated) == (0, n)


def batches(db: TensorDB, **options: Any) -> Iterator[dict[str, Any]]:
    return iter(db.data.find({"dataset": "t"}).stream(batch_size=2, shuffle=True, passes=1, **options))


def rest(found: Iterator[dict[str, Any]]) -> list[int]:
    out = []
    for batch in found:
        assert (batch["x"] == batch["label"][:, None]).all()
        out += batch["label"].tolist()
    return out


def test_a_running_stream_gives_the_old_bytes(db: TensorDB) -> None:
    fill(db)
    stream = batches(db)
    first = next(stream)["label"].tolist()
    replace(db)
    assert sorted(first + rest(stream)) == list(range(8))
    assert sorted(rest(batches(db))) == list(range(100, 108))
    assert db.data.find({"id": 3}).first()["x"].tolist() == [103] * 3


def test_old_bytes_that_are_gone_stop_a_resumed_stream_by_name(
    db: TensorDB, mongo_uri: str, warehouse_dir: Path
) -> None:
    fill(db)
    stream = db.data.find({"dataset": "t"}).stream(batch_size=2, shuffle=True, passes=1)
    next(iter(stream))
    state, plans = stream.state_dict(), stream.plans()
    replace(db)
    again = db.data.find({"dataset": "t"}).stream(batch_size=2, shuffle=True, passes=1)
    again.load_state_dict(state, plans=plans)
    assert len(rest(iter(again))) == 6  # still there
    assert db.gc(grace=3600).removed == 0
    assert db.gc(grace=0).removed == 1
    with TensorDB(mongo_uri, blobs=f"file://{warehouse_dir}/blobs") as other:
        late = other.data.find({"dataset": "t"}).stream(batch_size=2, shuffle=True, passes=1)
        late.load_state_dict(state, plans=plans)
        with pytest.raises(SampleError, match="its blob was replaced after this pass began, and the earlier one is"):
            next(iter(late))
        late.load_state_dict(state, plans=plans, on_change="replan")
        assert len(rest(itertools.islice(late, 4))) == 8


def test_a_blob_that_was_moved_and_then_replaced_is_found_as_it_was(db: TensorDB) -> None:
    fill(db, 4)
    db.data.ingest(rows(range(4, 40)), "t", key="id")
    stream = db.data.find({"dataset": "t", "id": {"$lt": 3}}).stream(batch_size=1, shuffle=True, passes=1)
    next(iter(stream))
    state, plans = stream.state_dict(), stream.plans()
    segment = db.database["data"].find_one({"id": 3})["_tdb"]["b"]["x"]["k"]  # type: ignore[index]
    db.data.find({"id": 3}).delete()
    first = db.database["segments"].find_one({"_id": segment})
    assert first is not None
    db.database["segments"].update_one({"_id": segment}, {"$set": {"blobs": first["blobs"] * 10}})  # mostly dead
    assert db.data.compact("t").samples == 3
    replace(db, 3)
    assert db.gc(grace=0).marked + db.gc(grace=0).removed > 0
    again = db.data.find({"dataset": "t", "id": {"$lt": 3}}).stream(batch_size=1, shuffle=True, passes=1)
    again.load_state_dict(state, plans=plans)
    assert set(rest(iter(again))) <= {0, 1, 2}


def test_a_gc_keeps_what_a_stored_plan_needs(db: TensorDB) -> None:
    fill(db)
    stream = db.data.find({"dataset": "t"}).stream(batch_size=2, shuffle=True, passes=1)
    next(iter(stream))
    state, plans = stream.state_dict(), stream.plans()
    assert plans
    parts = {"stream": state, "plans": plans, "model": {"w": np.zeros(300)}}
    saved = save_parameters(db.warehouse, view(parts), {"run": "r", "step": 1, "tags": [], "lineage": {}})
    stored = db.database["params"].find_one({"_id": saved.id})
    assert stored is not None and stored["_tdb"]["plans"] == [{"d": "t", "m": 0}]
    replace(db)
    report = db.gc(grace=0)
    assert (report.marked, report.removed, report.waiting) == (1, 0, 1)
    again = db.data.find({"dataset": "t"}).stream(batch_size=2, shuffle=True, passes=1)
    loaded: Any = load_parts(db.warehouse, stored, ["stream", "plans"], "numpy")
    again.load_state_dict(loaded["stream"], plans=loaded["plans"])
    assert len(rest(iter(again))) == 6
    db.params.find({"run": "r"}).delete()
    db.gc(grace=0)
    assert db.database["segments"].count_documents({}) == 1


def test_an_inline_blob_that_was_replaced_stops_a_stream(db: TensorDB, tmp_path: Path) -> None:
    with db.data.writer("t", live=True, schema={"id": int, "label": int, "x": Array("int64", (3,))}) as writer:
        for i in (1000, 1001):
            writer.add(id=i, label=i, x=np.full(3, i))
    assert "d" in db.database["data"].find_one({"id": 1000})["_tdb"]["b"]["x"]  # type: ignore[index]
    stream = db.data.find({"dataset": "t"}).stream(batch_size=1, shuffle=True, passes=2)
    next(iter(stream))
    state, plans = stream.state_dict(), stream.plans()
    # The document as an ingest would write it that knows the sample: an update puts no blob into a document.
    fill(db, 1)
    part = {**db.database["data"].find_one({"id": 0})["_tdb"]["b"]["x"], "m": 1}  # type: ignore[index]
    db.database["data"].update_many({"id": {"$gte": 1000}}, {"$set": {"_tdb.b.x": part, "label": 0}})
    again = db.data.find({"dataset": "t"}).stream(batch_size=1, shuffle=True, passes=2)
    again.load_state_dict(state, plans=plans)
    with pytest.raises(SampleError, match="its blob was replaced after this pass began"):
        next(iter(again))
