"""What is told of checkpoints, jobs and queries at a glance, against a real server."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from bson import Decimal128, MaxKey, ObjectId, Timestamp

from tensordb_data import CorruptBlobError, NotFoundError, Query, QueryError, TensorDB
from tensordb_data.jobs import worker_registry

W = np.random.default_rng(0).normal(size=2000).astype("f4")


def test_sizes_tell_what_a_checkpoint_has_for_itself(db: TensorDB) -> None:
    one = db.params.save({"w": W, "b": W[:1500] + 1}, run="r", step=1)
    two = db.params.save({"w": W, "b": W[:1500] + 2}, run="r", step=2)
    alone = db.params.save({"x": W + 3}, run="s")
    found = db.params.sizes({"run": "r"})
    assert set(found) == {one, two}
    assert found[one].bytes == db.params.find({"_id": one}).first().nbytes == 14_000
    assert found[one].shared > 6_000 and 4_000 < found[one].unique < found[one].shared
    assert db.params.sizes()[alone].shared == 0 and db.params.sizes({"run": "no"}) == {}
    TensorDB.over(db.warehouse.in_project("other")).params.save({"x": W + 3})
    assert db.params.sizes()[alone].shared == 0
    db.params.find({"_id": two}).delete()
    assert db.params.sizes()[one].shared == 0
    db.database["params"].update_one({"_id": one}, {"$set": {"_tdb.tensors": "x"}})
    with pytest.raises(CorruptBlobError, match=f"parameter set {one} of run 'r' at step 1 is damaged"):
        db.params.sizes()


def test_tensors_are_listed_without_being_read(db: TensorDB) -> None:
    state = {
        "layers": [{"weight": W.reshape(40, 50)}, {"weight": np.zeros(3, "f8")}],
        "step": 3,
        "tied": W.reshape(40, 50),
    }
    first = db.params.find({"_id": db.params.save(state)}).first()
    found = first.tensors
    assert [(one.part, one.name, one.dtype, one.shape, one.nbytes) for one in found][:2] == [
        ("model", "layers.0.weight", "<f4", (40, 50), 8000), ("model", "layers.1.weight", "<f8", (3,), 24),
    ]  # fmt: skip
    assert found[0].digest is not None and found[1].digest is None
    other = db.params.find({"_id": db.params.save({"again": W.reshape(40, 50)})}).first()
    assert other.tensors[0].digest == found[0].digest
    assert str(found).splitlines()[0].split() == ["part", "name", "dtype", "shape", "size"]
    none = db.params.find({"_id": db.params.save({"step": 3})}).first()
    assert none.tensors == [] and "no tensors" in str(none.tensors)


def test_lineage_goes_up_and_down(db: TensorDB) -> None:
    job = db.jobs.push("train", entry="json:loads")
    root = db.params.save({"w": W}, run="r", step=1)
    middle = db.params.save({"w": W}, run=job.run, step=2, parent=root)
    leaves = [db.params.save({"w": W}, run="s", step=step, parent=middle) for step in (3, 4)]
    found = db.params.lineage(middle)
    assert found.set.id == middle and [one.id for one in found.parents] == [root]
    assert [one.id for one in found.children] == leaves
    assert found.job is not None and found.job.id == job.id and found.data == () and found.versions["python"]
    assert [one.id for one in db.params.lineage(str(leaves[0])).parents] == [middle, root]
    assert db.params.lineage(found.set).set is found.set and "parent 1" in str(found) and str(job.id) in str(found)
    query = db.data.find({"dataset": "d"}).query
    rows = [{"query": query.to_json()}, {"query": "{"}, 7]
    db.database["params"].update_one({"_id": root}, {"$set": {"lineage.data": rows, "lineage.parent": leaves[0]}})
    circle = db.params.lineage(root)
    assert circle.data == (query,) and [one.id for one in circle.parents] == [leaves[0], middle]
    db.params.find({"_id": middle}).delete()
    assert db.params.lineage(leaves[0]).parents == ()
    with pytest.raises(NotFoundError, match="no checkpoint"):
        db.params.lineage(middle)
    with pytest.raises(QueryError, match="lineage takes a checkpoint"):
        db.params.lineage(3)  # type: ignore[arg-type]


def test_jobs_at_a_glance(db: TensorDB) -> None:
    assert db.jobs.counts() == dict.fromkeys(["waiting", "ready", "running", "done", "dead", "cancelled"], 0)
    assert db.jobs.workers() == [] and "tensordb worker" in str(db.jobs.workers())
    jobs = [db.jobs.push("t", entry="json:loads", priority=i) for i in range(3)]
    jobs.append(db.jobs.push("t", entry="json:loads", after=[jobs[0]]))
    claimed = db.jobs.claim(worker="w")
    assert claimed is not None and claimed.id == jobs[2].id
    assert {status: n for status, n in db.jobs.counts().items() if n} == {"waiting": 1, "ready": 2, "running": 1}
    fields = {
        "name": "w1", "host": "h", "pid": 7, "kinds": ["t"], "allow": ["json."], "scripts": False, "has": {"gpu": 1},
        "free": {"gpu": 1}, "job": None, "draining": False,
    }  # fmt: skip
    worker_registry.report(db.warehouse, ObjectId(), 60, fields)
    (worker,) = db.jobs.workers()
    assert (worker.name, worker.pid, worker.kinds, worker.resources, worker.job) == ("w1", 7, ("t",), {"gpu": 1}, None)
    assert "w1" in str(db.jobs.workers()) and "gpu=1" in str(db.jobs.workers())
    worker_registry.report(db.warehouse, ObjectId(), 60, {"name": "odd"})
    assert [one.name for one in db.jobs.workers()] == ["w1"]
    db.database["workers"].delete_one({"fields.name": "odd"})
    assert db.jobs.explain(jobs) == [job.explain() for job in jobs]
    db.database["jobs"].update_one({"_id": jobs[1].id}, {"$set": {"priority": "high"}})
    texts = db.jobs.explain([jobs[1].id, ObjectId(), jobs[0]])
    assert "another tool has written it" in texts[0] and "deleted" in texts[1] and texts[2] == jobs[0].explain()
    with pytest.raises(QueryError, match="explain takes jobs"):
        db.jobs.explain(["x"])  # type: ignore[list-item]


FILTERS: list[dict[str, Any]] = [
    {}, {"dataset": "it's \"quoted\"\n'; import os; '"}, {"label": {"$in": [1, 2.5, True, None]}},
    {"_id": ObjectId("65f0c0ffee65f0c0ffee65f0")}, {"at": {"$gte": dt.datetime(2026, 11, 30, 12, 0, 0, 5000)}},
    {"x": {"$gt": float("-inf"), "$lt": float("nan")}}, {"name": re.compile("^a.b", re.I)},
    {"b": b"\x00\xff", "u": UUID(int=7), "d": Decimal128("1.50"), "t": Timestamp(1, 2), "m": MaxKey()},
]  # fmt: skip


@pytest.mark.parametrize("filter", FILTERS, ids=str)
def test_the_source_of_a_query_makes_it_again(filter: dict[str, Any]) -> None:
    for query in (Query("data", filter), Query("logs", filter, sort=[("step", -1)], limit=5, fields=["a b"])):
        made = run(query.python())
        assert made == query or "nan" in query.to_json().lower()
        assert made.to_json() == query.to_json()
    assert Query("jobs").python("warehouse") == "warehouse.jobs.find()"


def run(source: str) -> Query:
    """What the source makes, over something that only notes the query."""

    class Noted:
        def __getattr__(self, collection: str) -> Any:
            return type(
                "Collection", (), {"find": staticmethod(lambda *args, **kwargs: Query(collection, *args, **kwargs))}
            )

    *imports, expression = source.splitlines()
    names: dict[str, Any] = {"db": Noted()}
    for line in imports:
        assert re.fullmatch(r"import datetime|from bson(\.\w+)? import \w+", line)
        exec(line, names)  # noqa: S102
    return eval(expression, names)  # type: ignore[no-any-return]  # noqa: S307


def test_a_selection_has_its_source(db: TensorDB) -> None:
    assert db.data.find({"label": 3}, limit=5).python() == "db.data.find({'label': 3}, limit=5)"
