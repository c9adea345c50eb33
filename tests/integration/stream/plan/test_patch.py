"""A plan of which samples were changed: these alone are read, and it is the same as one that is read as a whole."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bson import ObjectId
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensordb_data import Array, Scalar, TensorDB
from tensordb_data.samples import annotate as annotation
from tensordb_data.samples import mutations
from tensordb_data.samples.mutations import Mutation
from tensordb_data.stream.passes import plan_reader
from tensordb_data.stream.passes.planner import Planner
from tensordb_data.stream.plan import cache as plan_cache
from tensordb_data.stream.plan import index_snapshot, patch
from tensordb_data.stream.plan.plan import Plan

SCHEMA = {"x": Array("uint8", (3,)), "n": Scalar("int"), "t": Scalar("str", optional=True), "f": Scalar("float")}
FIELDS = ["x", "n", "f", "_id", "dataset"]


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How plans were made: "whole", "extended" or "patched"."""
    found: list[str] = []

    def noted(way: str, made: Callable[..., Any]) -> Callable[..., Any]:
        def make(*args: Any) -> Any:
            plan = made(*args)
            found.extend([way] if plan is not None else [])
            return plan

        return make

    for name, way in (("read_plan", "whole"), ("extended_plan", "extended"), ("patched_plan", "patched")):
        monkeypatch.setattr(plan_reader, name, noted(way, getattr(plan_reader, name)))
    return found


@pytest.fixture
def opened(mongo_uri: str, warehouse_dir: Path) -> Any:
    with TensorDB(mongo_uri, blobs=f"file://{warehouse_dir}/blobs", cache=warehouse_dir / "cache") as db:
        yield db


def add(db: TensorDB, dataset: str, count: int, *, live: bool = False) -> None:
    with db.data.writer(dataset, schema=SCHEMA, live=live) as writer:
        for i in range(count):
            writer.add(x=np.full(3, i % 256, np.uint8), n=i, f=i / 2, **({"t": f"é{i}"} if i % 3 else {}))


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
    values = {name: (column.dtype, column.tolist()) for name, column in table.values.items()}
    assert table.sequence is not None
    numbers = table.sequence.tolist()
    return plan.ids, plan.versions, table.ids.tolist(), of, refs, packed, values, sorted(table.inline), numbers


def select(db: TensorDB, dataset: str, low: int, count: int) -> Any:
    return db.data.find({"dataset": dataset, "n": {"$gte": low, "$lt": low + count}})


def do(db: TensorDB, what: str, dataset: str, low: int, count: int) -> None:
    some = select(db, dataset, low, count)
    if what == "set":
        some.update({"$set": {"n": (low * 7) % 20, "f": 1.5}})
    elif what == "inc":
        some.update({"$inc": {"n": 5}})
    elif what == "all":
        db.data.find({"n": {"$gte": low}}).update({"$mul": {"f": 2}})
    elif what == "tag":
        some.tag("seen")
    elif what == "annotate":
        db.data.annotate({sample.id: {"n": low + i} for i, sample in enumerate(some)}, source="m")
    elif what == "delete":
        some.delete()
    elif what == "compact":
        db.data.compact(dataset)
    else:
        add(db, dataset, count, live=what == "live")


steps = st.lists(
    st.tuples(
        st.sampled_from(["set", "inc", "all", "tag", "annotate", "delete", "compact", "add", "live"]),
        st.sampled_from("ab"), st.integers(0, 20), st.integers(1, 8), st.booleans(),
    ),
    min_size=1, max_size=6,
)  # fmt: skip


@given(steps=steps, from_file=st.booleans(), filtered=st.booleans(), datasets=st.sampled_from(["a", "ab"]))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_is_the_plan(
    opened: TensorDB, monkeypatch: pytest.MonkeyPatch, steps: Any, from_file: bool, filtered: bool, datasets: str
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(patch, "_SHARE", 10.0)
        patched.setattr(mutations, "LIMIT", 5)
        patched.setattr(annotation, "LIMIT", 5)
        for dataset in "ab":
            if opened.data.find({"dataset": dataset}).count() < 15:
                add(opened, dataset, 20, live=filtered)
        options = {"filter": {"n": {"$lt": 12}}} if filtered else {}
        plan(opened, *datasets, **options)
        for what, dataset, low, count, looks in steps:
            do(opened, what, dataset, low, count)
            if from_file:
                forget(opened)
            if looks:
                plan(opened, *datasets, **options)
        found = plan(opened, *datasets, **options)
        assert content(found) == content(whole(opened, *datasets, **options))


CHANGES: dict[str, Callable[[TensorDB], Any]] = {
    "set": lambda db: select(db, "a", 3, 2).update({"$set": {"n": 99}}),
    "begins to match": lambda db: select(db, "a", 50, 2).update({"$set": {"n": 4}}),
    "tag": lambda db: select(db, "a", 6, 2).tag("x"),
    "annotate": lambda db: db.data.annotate({select(db, "a", 8, 1).first().id: {"n": 5}}, source="m"),
    "delete": lambda db: select(db, "a", 10, 2).delete(),
    "split": lambda db: db.data.find({"dataset": "a"}, limit=9).split({"train": 0.5, "test": 0.5}, seed=1),
    "several": lambda db: db.data.find({"n": {"$in": [1, 2]}}).update({"$inc": {"n": 1}}),
    "and add": lambda db: (select(db, "a", 12, 2).update({"$set": {"n": 9}}), add(db, "a", 3)),
}


def test_a_small_change_is_patched(opened: TensorDB, ways: list[str]) -> None:
    add(opened, "a", 60)
    add(opened, "b", 8)
    opened.data.find({"dataset": "a"}).split({"train": 0.5, "test": 0.5})
    few = {"filter": {"n": {"$lt": 40}}}
    plan(opened, "a", "b", **few)
    for change in CHANGES.values():
        ways.clear()
        change(opened)
        found = plan(opened, "a", "b", **few)
        assert ways == ["patched"]
        assert content(found) == content(whole(opened, "a", "b", **few))


def test_a_compaction_is_patched(opened: TensorDB, ways: list[str]) -> None:
    add(opened, "a", 60)
    add(opened, "a", 6, live=True)
    assert plan(opened, "a").table.inline
    ways.clear()
    assert opened.data.compact("a").samples == 6
    found = plan(opened, "a")
    assert ways == ["patched"] and not found.table.inline
    assert content(found) == content(whole(opened, "a"))
    assert opened.data.changes("a")[-1].what == "compact"


def test_an_ingest_is_patched(opened: TensorDB, ways: list[str], tmp_path: Path) -> None:
    rows = [{"k": i, "n": i} for i in range(40)]
    opened.data.ingest(rows, "t", key="k", source_id="s")
    stream = opened.data.find({"dataset": "t"}).stream(batch_size=4, shuffle=True)
    before = Planner(opened.warehouse, stream.spec).plan()
    ways.clear()
    rows[3]["n"] = 33
    assert opened.data.ingest([*rows, {"k": 50, "n": 50}], "t", key="k", source_id="s").updated == 1
    found = Planner(opened.warehouse, stream.spec).plan()
    assert ways == ["patched"] and len(found) == len(before) + 1
    forget(opened)
    for path in (opened.warehouse.cache_dir / "plans").iterdir():  # type: ignore[union-attr]
        path.unlink()
    assert content(found) == content(Planner(opened.warehouse, stream.spec).plan())


def unstamped(db: TensorDB, name: str) -> None:
    """What a program does that knows of no stamps."""
    db.database["datasets"].update_one({"_id.d": name}, {"$inc": {"mut": 1}})
    db.database["data"].update_one({"dataset": name, "n": 7}, {"$set": {"n": 8}})


def pruned(db: TensorDB, name: str) -> None:
    select(db, name, 4, 1).delete()
    db.data.prune_changes(name, older_than=dt.timedelta(0))


def forged(db: TensorDB, name: str) -> None:
    db.database["changes"].insert_one({"p": "default", "dataset": name, "k": "delete", "m": 99, "s": "x"})


def edited(db: TensorDB, name: str) -> None:
    db.database["datasets"].update_one({"_id.d": name}, {"$set": {"stamps.to": 1, "stamps.since": "x"}})


INDEX = "_tdb.p_1_dataset_1__tdb.m_1"
WHOLE: dict[str, Callable[[TensorDB, str], Any]] = {
    "much": lambda db, name: select(db, name, 0, 30).update({"$inc": {"n": 1}}),
    "much deleted": lambda db, name: select(db, name, 0, 30).delete(),
    "unstamped": unstamped,
    "touch": lambda db, name: db.touch(name),
    "evolve": lambda db, name: db.data.schema(name).evolve(z=Scalar("int", optional=True)),  # type: ignore[union-attr]
    "rename": lambda db, name: db.data.schema(name).rename(t="u"),  # type: ignore[union-attr]
    "pruned": pruned,
    "forged": forged,
    "no index": lambda db, name: db.database["data"].drop_index(INDEX),
}


def test_other_changes_have_it_read_as_a_whole(opened: TensorDB, ways: list[str]) -> None:
    for number, (change, make) in enumerate(WHOLE.items()):
        name = f"a{number}"
        add(opened, name, 60)
        plan(opened, name)
        ways.clear()
        make(opened, name)
        select(opened, name, 50, 2).update({"$set": {"n": 60}})
        found = plan(opened, name)
        assert ways == ["whole"], change
        assert content(found) == content(whole(opened, name))
        ways.clear()
        select(opened, name, 40, 2).update({"$set": {"n": 61}})
        plan(opened, name)
        assert ways == (["whole"] if change in ("no index", "forged") else ["patched"]), change
    edited(opened, name)
    assert plan(opened, name).versions[name][1] == 2


def test_a_limit_or_a_sort_is_read_as_a_whole(opened: TensorDB, ways: list[str]) -> None:
    add(opened, "a", 60)
    for options in ({"limit": 50}, {"sort": [("n", -1)], "limit": 50}):
        plan(opened, "a", **options)
        ways.clear()
        assert select(opened, "a", 5, 1).update({"$set": {"f": len(ways) + len(options) + 0.1}}) == 1
        assert plan(opened, "a", **options).table.sequence is None and ways == ["whole"]


def test_overlapping_changes(opened: TensorDB, ways: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_snapshot, "PATIENCE", 0.0)
    add(opened, "a", 60)
    before = plan(opened, "a")
    ids = opened.data.find({"dataset": "a"}).bound.ids()

    def step(mutation: Mutation, some: list[ObjectId], n: int) -> None:
        def change(ids: Any, session: Any) -> int:
            to_set = {"n": n, "_tdb.m": mutation.numbers["a"]}
            found = opened.database["data"].update_many({"_id": {"$in": ids}}, {"$set": to_set}, session=session)
            return int(found.modified_count)

        mutation.step(some, change)

    first = Mutation(opened.warehouse, "update", ["a"], alone=False, stamps=True)
    second = Mutation(opened.warehouse, "update", ["a"], alone=False, stamps=True)
    with first:
        step(first, ids[:2], 100)
        with second:
            step(second, ids[2:4], 200)
            select(opened, "a", 30, 2).update({"$set": {"n": 300}})
            step(first, ids[3:5], 100)  # changed by the second, with a higher number, before
        assert content(plan(opened, "a"))[2:] == content(before)[2:]  # of before the first
        step(first, ids[5:6], 100)
    found = plan(opened, "a")
    assert ways[-1] == "patched" and found.table.values["n"][:6].tolist() == [100, 100, 200, 100, 100, 100]
    assert content(found) == content(whole(opened, "a"))


def test_each_patch_beside_writers_is_the_plan_of_its_moment(opened: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutations, "LIMIT", 3)
    monkeypatch.setattr(annotation, "LIMIT", 3)
    monkeypatch.setattr(patch, "_SHARE", 10.0)
    compared, made = [], plan_reader.patched_plan

    def patched(before: Plan, query: Any, versions: Any, session: Any) -> Plan | None:
        found = made(before, query, versions, session)
        if found is not None:
            anew = plan_reader.read_plan(query, before.table.layout, versions, session)
            compared.append(content(found) == content(anew))
        return found

    monkeypatch.setattr(plan_reader, "patched_plan", patched)
    add(opened, "a", 40)
    plan(opened, "a")
    kinds = (["set", "inc", "delete"], ["annotate", "tag", "live"], ["add", "compact", "set"])

    def write(which: int) -> None:
        for round_ in range(4):
            for what in kinds[which]:
                do(opened, what, "a", (7 * round_ + 5 * which) % 20, 4)

    few = {"filter": {"n": {"$lt": 15}}}
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(write, which) for which in range(3)]
        while not all(writer.done() for writer in running):
            plan(opened, "a")
            plan(opened, "a", **few)
            forget(opened)
        for writer in running:
            writer.result()
    found = plan(opened, "a")
    assert compared and all(compared)
    assert content(found) == content(whole(opened, "a"))


def test_a_reader_who_cannot_end_a_silent_change_misses_nothing_of_it(
    opened: TensorDB, ways: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the change for dead, and plans; the change lives after all, and goes on with its old number."""
    add(opened, "a", 60)
    ids = opened.data.find({"dataset": "a"}).bound.ids()
    going = Mutation(opened.warehouse, "update", ["a"], alone=False, stamps=True)

    def step(some: list[ObjectId]) -> None:
        def change(ids: Any, session: Any) -> int:
            to_set = {"n": 7, "_tdb.m": going.numbers["a"]}
            return opened.database["data"].update_many(
                {"_id": {"$in": ids}}, {"$set": to_set}, session=session
            ).modified_count  # fmt: skip

        going.step(some, change)

    with monkeypatch.context() as patched:
        patched.setattr(index_snapshot, "end_silent", lambda warehouse, ids, names: set(ids))
        patched.setattr(index_snapshot, "_ended", lambda warehouse, names, ids: False)
        with going:
            step(ids[:2])
            select(opened, "a", 50, 1).update({"$set": {"n": 0}})
            kept = plan(opened, "a")
            assert kept.since == {"a": 0} and kept.versions["a"][1] == 2
            step(ids[2:4])
    forget(opened)
    found = plan(opened, "a")
    assert ways[-1] == "patched" and content(found) == content(whole(opened, "a"))


def test_a_change_that_was_killed_is_found(opened: TensorDB, ways: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutations, "LIMIT", 2)
    add(opened, "a", 60)
    plan(opened, "a")
    original, left = Mutation.step, [2]

    def step(mutation: Mutation, *args: Any) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return original(mutation, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Mutation, "step", step)
        patched.setattr(Mutation, "__exit__", lambda *_: None)  # it was killed: nothing ends it
        with pytest.raises(KeyboardInterrupt):
            select(opened, "a", 0, 10).update({"$inc": {"n": 100}})
    opened.database["mutations"].update_many({}, {"$set": {"until": dt.datetime(2020, 1, 1)}})
    found = plan(opened, "a")
    assert ways[-1] == "patched" and sum(n >= 100 for n in found.table.values["n"].tolist()) == 4
    assert content(found) == content(whole(opened, "a"))
    assert sum(change.count for change in opened.data.changes("a") if change.what == "update") == 4


def test_a_plan_waits_for_no_compaction(opened: TensorDB, monkeypatch: pytest.MonkeyPatch, ways: list[str]) -> None:
    monkeypatch.setattr(index_snapshot, "PATIENCE", 0.0)
    add(opened, "a", 60)
    add(opened, "a", 6, live=True)
    plan(opened, "a")
    original = Mutation.step
    seen: list[Any] = []

    def step(mutation: Mutation, *args: Any) -> int:
        done = original(mutation, *args)
        if not seen:
            seen.append(plan(opened, "a"))
            select(opened, "a", 50, 1).update({"$set": {"n": 0}})
            seen.append(plan(opened, "a"))
        return done

    with monkeypatch.context() as patched:
        patched.setattr(Mutation, "step", step)
        opened.data.compact("a")
    assert [found.versions["a"][1] for found in seen] == [1, 2] and seen[1].since == {"a": 0}
    found = plan(opened, "a")
    assert set(ways[1:]) == {"patched"} and content(found) == content(whole(opened, "a"))
