"""A plan to which samples were added: only these are read, and it is the same as one that is read as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensordb_data import Array, Scalar, TensorDB
from tensordb_data.stream.passes import plan_reader
from tensordb_data.stream.passes.planner import Planner
from tensordb_data.stream.plan import cache as plan_cache
from tensordb_data.stream.plan.plan import Plan

SCHEMA = {
    "x": Array("uint8", (3,)), "y": Array("uint8", (None,)), "n": Scalar("int"), "t": Scalar("str", optional=True)
}  # fmt: skip
FIELDS = ["x", "y", "n", "_id", "dataset"]


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How plans were made: "whole" or "extended"."""
    found: list[str] = []
    for name, way in (("read_plan", "whole"), ("extended_plan", "extended")):
        made = getattr(plan_reader, name)
        monkeypatch.setattr(plan_reader, name, lambda *args, made=made, way=way: (found.append(way), made(*args))[1])
    return found


@pytest.fixture
def opened(mongo_uri: str, warehouse_dir: Path) -> Any:
    with TensorDB(mongo_uri, blobs=f"file://{warehouse_dir}/blobs", cache=warehouse_dir / "cache") as db:
        yield db


def add(db: TensorDB, dataset: str, count: int, *, live: bool = False) -> None:
    with db.data.writer(dataset, schema=SCHEMA, live=live) as writer:
        for i in range(count):
            more = {"t": f"é{i}"} if i % 3 else {}
            writer.add(x=np.full(3, i % 256, np.uint8), y=np.arange(i % 5, dtype=np.uint8), n=i, **more)


def plan(db: TensorDB, *datasets: str, **options: Any) -> Plan:
    filter = {"dataset": {"$in": list(datasets)}, **options.pop("filter", {})}
    stream = db.data.find(filter, **options).stream(batch_size=4, shuffle=True, fields=FIELDS)
    return Planner(db.warehouse, stream.spec).plan()


def forget(db: TensorDB) -> None:
    """Have the next plan opened from its file."""
    db.warehouse.memo(plan_cache.NewestPlan, plan_cache.NewestPlan)._known = None


def whole(db: TensorDB, *datasets: str, **options: Any) -> Plan:
    """A plan of which nothing is known."""
    forget(db)
    for path in (db.warehouse.cache_dir / "plans").iterdir():
        path.unlink()
    return plan(db, *datasets, **options)


def content(plan: Plan) -> Any:
    table = plan.table
    refs = {
        name: [[r.segments[number] for number in r.segment], r.offset.tolist(), r.length.tolist()]
        for name, r in table.refs.items()
    }
    packed = {name: None if r.compressed is None else r.compressed.tolist() for name, r in table.refs.items()}
    of = [table.datasets[number] for number in table.dataset]
    values = {name: column.tolist() for name, column in table.values.items()}
    return plan.ids, plan.versions, table.ids.tolist(), of, refs, packed, values, sorted(table.inline), table.nbytes


changes = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 9), st.booleans()), min_size=1, max_size=4)


@given(changes=changes, from_file=st.booleans(), filtered=st.booleans())
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_is_the_plan(opened: TensorDB, ways: list[str], changes: Any, from_file: bool, filtered: bool) -> None:
    for dataset in "ab":
        add(opened, dataset, 3)
    options = {"filter": {"n": {"$lt": 5}}} if filtered else {}
    plan(opened, "a", "b", **options)
    ways.clear()
    for dataset, count, live in changes:
        add(opened, dataset, count, live=live)
        if from_file:
            forget(opened)
        plan(opened, "a", "b", **options)
    found = plan(opened, "a", "b", **options)
    assert ways == ["extended"] * len(changes)
    assert content(found) == content(whole(opened, "a", "b", **options))


@pytest.mark.parametrize("change", ["drop", "limit", "sort", "damaged", "evolve"])
def test_other_changes_have_it_read_as_a_whole(
    opened: TensorDB, ways: list[str], change: str, warehouse_dir: Path
) -> None:
    add(opened, "a", 9)
    more: dict[str, Any] = {"limit": {"limit": 50}, "sort": {"sort": [("n", -1)], "limit": 50}}.get(change, {})
    plan(opened, "a", **more)
    ways.clear()
    if change == "drop":
        opened.data.drop("a")
    elif change == "evolve":
        opened.data.schema("a").evolve(z=Scalar("int", optional=True))
    elif change == "damaged":
        forget(opened)
        for path in (warehouse_dir / "cache" / "plans").glob("*.newest"):
            path.write_bytes(b'{"a": [1, {}]}')
    add(opened, "a", 4)
    found = plan(opened, "a", **more)
    assert ways == ["whole"]
    assert content(found) == content(whole(opened, "a", **more))


def test_blobs_that_were_checked_stay_so(opened: TensorDB, ways: list[str]) -> None:
    add(opened, "a", 40)
    selection = opened.data.find({"dataset": "a"})
    list(selection.stream(batch_size=4, shuffle=True, fields=["x", "n"], passes=1))
    add(opened, "a", 2)
    stream = selection.stream(batch_size=4, shuffle=True, fields=["x", "n"], passes=1)
    refs = Planner(opened.warehouse, stream.spec).plan().table.refs["x"]
    assert ways == ["whole", "extended"]
    assert refs.checksum_cache.verified.done.tolist() == [True] * 40 + [False] * 2
    assert sorted(n for batch in stream for n in batch["n"].tolist()) == sorted([*range(40), *range(2)])
    assert refs.checksum_cache.verified.complete
