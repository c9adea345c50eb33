"""Pages, estimates, facets and counts that end in bounded time, against a real server."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensordb_data import QueryError, Scalar, Selection, TensorDB, TimeLimitError
from tensordb_data.query.query import Query
from tensordb_data.table import estimate, walk
from tensordb_data.table.bounded import AtLeast
from tensordb_data.table.cursors import Mark, from_text, to_text

OPTIONAL = {"score": Scalar("float", optional=True), "name": Scalar("str", optional=True), "label": Scalar("int")}


@pytest.fixture
def db2(db: TensorDB) -> TensorDB:
    """Two datasets of 30 and 10 samples, a third of them without a score."""
    with db.data.writer("a", schema=OPTIONAL) as writer:
        for i in range(30):
            writer.add(label=i % 3, score=[None, float("nan"), i / 10][i % 3], name=None if i % 7 else f"n{i}")
    with db.data.writer("b", schema=OPTIONAL) as writer:
        for i in range(10):
            writer.add(label=3, score=float(i), name="x")
    return db


def pages(sel: Selection[Any], n: int, **options: Any) -> list[Any]:
    """All entities, page by page."""
    found: list[Any] = []
    after = None
    for _ in range(100):
        page = sel.page(n, after, **options)
        assert len(page) <= n and page.done == (page.next is None) and 0 <= page.looked <= 1
        found += page
        after = page.next
        if after is None:
            assert page.looked == 1
            return found
    raise AssertionError("no end")


@pytest.mark.parametrize("sort", [
    None, [("score", 1)], [("score", -1)], [("name", 1), ("score", -1)], [("name", -1)], [("label", -1), ("name", 1)],
    [("tags", 1)], [("_id", -1)], [("dataset", -1)], [("label.x", 1)],
])  # fmt: skip
def test_pages_together_are_the_selection(db2: TensorDB, sort: Any) -> None:
    for filter in ({}, {"dataset": "a"}, {"dataset": "a", "label": {"$lt": 2}}):
        sel = db2.data.find(filter, sort=sort)
        assert [one.id for one in pages(sel, 7)] == [one.id for one in sel]
    limited = db2.data.find(sort=sort, limit=16)
    assert [one.id for one in pages(limited, 7)] == [one.id for one in limited]
    assert [one.id for one in pages(limited, 8)] == [one.id for one in limited]


def test_pages_of_other_entities(db: TensorDB) -> None:
    with db.logs.run("r") as log:
        for step in range(9):
            log.write(step // 2, loss=1.0, kind="ab"[step % 2])
    for i in range(5):
        db.params.save({"w": np.zeros(1)}, run=None if i else "r", step=i, acc=[0.5, float("nan"), 0.9, 0.1, 0.2][i])
        db.architectures.save("cnn", factory="json:loads", kwargs={"i": i})
    for sel in (
        db.logs.find(), db.logs.find(sort=[("step", -1), ("kind", 1)]), db.logs.find(sort=[("loss", 1)]),
        db.params.find(sort=[("acc", -1)]), db.params.find(sort=[("run", 1)]), db.architectures.find(), db.jobs.find(),
    ):  # fmt: skip
        assert [one.id for one in pages(sel, 2)] == [one.id for one in sel]


def test_a_page_goes_on_whatever_was_written_meanwhile(db2: TensorDB) -> None:
    sel = db2.data.find({"dataset": "a"})
    first = sel.page(10)
    db2.data.find({"_id": {"$in": [one.id for one in first][5:]}}).delete()
    with db2.data.writer("a") as writer:
        writer.add(label=9)
    rest = sel.page(100, first.next)
    assert len(rest) == 21 and rest.entities[-1]["label"] == 9 and rest.done
    assert set(sel.page(1, fields=["label"]).entities[0]) == {"_id", "dataset", "tags", "label"}
    assert sel.page(2, first.next, fields=["label"]).entities[0]["label"] == 1
    assert [one.id for one in sel.page(3)] == [one.id for one in sel.head(3)]


def test_a_page_ends_when_its_time_is_up(db2: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page of a search for what is rare gets further by one range at least."""
    monkeypatch.setattr(walk, "_FIRST", 8)
    sel = db2.data.find({"name": {"$in": ["n28", "x"]}}, limit=9)
    first = sel.page(3, seconds=1e-9)
    assert first.entities == [] and not first.done and first.looked == 8 / 40
    assert [one.id for one in pages(sel, 3, seconds=1e-9)] == [one.id for one in sel]
    with pytest.raises(TimeLimitError, match=r"db\.data\.create_index\(\['score'\]\)"):
        slow(db2).page(5, seconds=0.01)


def slow(db: TensorDB) -> Selection[Any]:
    """A Selection for which the server burns time."""
    numbers = {"$range": [0, {"$add": [100_000, "$label"]}]}
    total = {"$reduce": {"input": numbers, "initialValue": 0, "in": {"$add": ["$$value", "$$this"]}}}
    burn: dict[str, Any] = {"$gte": [total, 0]}
    return db.data.find({"$expr": burn}, sort=[("score", 1)])


def test_reads_end_within_their_time(db2: TensorDB) -> None:
    limited = slow(db2).within(0.02)
    for read in (
        limited.count, limited.all, lambda: limited.distinct("label"), lambda: limited.value_counts("label"),
        limited.describe, lambda: limited.aggregate([{"$count": "n"}]), lambda: limited.head(2),
        lambda: (limited & {"label": 1}).count(),
    ):  # fmt: skip
        with pytest.raises(TimeLimitError, match="time for Query"):
            read()
    assert type(db2.logs.find().within(1)) is type(db2.logs.find())
    assert db2.data.find({"label": 3}).within(30).count() == 10
    with pytest.raises(QueryError, match="number above 0"):
        db2.data.find().within(0)
    with pytest.raises(QueryError, match="number above 0"):
        db2.data.find().within("2")  # type: ignore[arg-type]


def test_counts_that_do_not_go_on_to_the_end(db2: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    sel = db2.data.find()
    for at_most, expected in ((39, AtLeast(39)), (40, 40), (41, 40)):
        found = sel.count(at_most=at_most)
        assert found == expected and type(found) is type(expected)
    assert (repr(sel.count(at_most=5)), str(sel.count(at_most=5))) == ("AtLeast(5)", "5 or more")
    assert db2.data.find(limit=10).count(at_most=10) == 10 and sel.count(seconds=20) == 40
    monkeypatch.setattr(walk, "_FIRST", 8)
    found = (db2.data.find(slow(db2).query.filter)).count(seconds=0.01)
    assert isinstance(found, AtLeast) and 0 < found < 40
    assert type(slow(db2).count(seconds=0.01)) is AtLeast
    for wrong in (0, -1, True, "5"):
        with pytest.raises(QueryError, match="whole number from 1"):
            sel.count(at_most=wrong)  # type: ignore[arg-type]


@pytest.fixture
def many(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> TensorDB:
    """3,000 samples, where more than 500 are many."""
    monkeypatch.setattr(estimate, "EXACT", 500)
    rng = np.random.default_rng(0)
    with db.data.writer("m") as writer:
        writer.add_many(label=np.arange(3000) % 4, x=rng.normal(size=3000), key=[f"k{i}" for i in range(3000)],
                        tags=["all"])  # fmt: skip
    db.data.find({"label": 0}, limit=250).delete()
    return db


def test_an_estimate_is_near_and_says_so(many: TensorDB) -> None:
    sel = many.data.find({"dataset": "m"})
    about = sel.estimate(sample=1000)
    assert (
        not about.exact and about.low <= 2750 <= about.high and 2600 < about.value < 2900 and int(about) == about.value
    )
    assert about == sel.estimate(sample=1000, seed=0) and str(about).startswith("≈ ")
    few = many.data.find({"dataset": "m", "key": {"$in": ["k1", "k2"]}}).estimate()
    assert (few.value, few.exact, str(few)) == (2, True, "2")
    assert sel.estimate(sample=99_999).exact
    rows = many.logs.find().estimate()
    assert (rows.value, rows.exact) == (0, True)
    sorted_ = many.data.find(sort=[("x", 1)]).estimate(sample=1000)
    assert sorted_.value == about.value
    limited = many.data.find(limit=700).estimate()
    assert (limited.value, limited.exact) == (700, True)
    with pytest.raises(QueryError, match="seed"):
        sel.estimate(seed=-1)


def test_facets_are_counted_where_there_are_few(db2: TensorDB) -> None:
    found = db2.data.find().facets()
    assert list(found) == ["dataset", "score", "name", "label", "tags"] and all(each.exact for each in found.values())
    assert found["label"].values == {0: 10, 1: 10, 2: 10, 3: 10} and found["dataset"].values == {"a": 30, "b": 10}
    score = found["score"]
    assert (score.present, score.missing, score.nan, score.is_histogram) == (30, 10, 10, True)
    assert sum(score.bins) == 20 and len(score.bins) == 24 and (score.edges[0], score.edges[-1]) == (0.0, 9.0)
    assert found["name"].values["x"] == 10 and found["name"].missing == 25
    assert str(found["label"]) == "label: 0: 10, 1: 10, 2: 10, 3: 10" and "0 to 9, 24 bins" in str(score)
    whole = db2.data.find().facets(["label"], top=2)["label"]
    assert (whole.edges, whole.bins) == ((0.0, 1.0, 2.0, 3.0, 4.0), (10, 10, 10, 10))
    assert db2.data.find({"dataset": "a"}).histogram("label", bins=3).bins == (10, 10, 10)
    assert db2.data.find({"label": 3}).histogram("label").bins == (10,)
    assert db2.data.find({"label": 77}).histogram("label").bins == ()
    with pytest.raises(QueryError, match="'name' holds other values than numbers"):
        db2.data.find().histogram("name")
    assert db2.data.find({"label": 77}).facets(["label"])["label"].distinct == 0
    with db2.data.writer("t") as writer:
        writer.add_many(at=[dt.datetime(2026, 11, day) for day in range(1, 25)], v=[{"w": i} for i in range(24)])
    times = db2.data.find({"dataset": "t"}).facets(["at", "v.w"], bins=23)
    assert times["at"].edges[0] == dt.datetime(2026, 11, 1) and times["at"].bins == (1,) * 22 + (2,)
    assert sum(times["v.w"].bins) == 24


def test_facets_are_estimated_where_there_are_many(many: TensorDB) -> None:
    sel = many.data.find({"dataset": "m"})
    found = sel.facets(sample=1000)
    label, key, x = found["label"], found["key"], found["x"]
    assert not label.exact and set(label.values) == {0, 1, 2, 3} and 600 < label.values[1] < 900
    assert label.values[0] < 650 and 2600 < label.present < 2900
    assert key.values == {} and key.distinct is not None and 850 < key.distinct <= 1000 and "different" in str(key)
    assert not x.exact and len(x.bins) == 24 and 2500 < sum(x.bins) < 3000
    assert found == sel.facets(sample=1000, seed=0) and found != sel.facets(sample=1000, seed=1)
    limited = many.data.find(sort=[("x", 1)], limit=1000).facets(["x"], sample=200)["x"]
    assert not limited.exact and limited.present == 1000 and limited.edges[-1] < 0
    with many.logs.run("r") as log:
        for step in range(600):
            log.write(step, loss=step / 10)
    rows = many.logs.find().facets(sample=300)
    assert rows["loss"].present == 600 and not rows["loss"].exact and len(rows["loss"].bins) == 24
    assert {"run", "kind", "step", "time", "loss", "tags"} == set(rows)


def test_what_facets_and_pages_refuse(db2: TensorDB) -> None:
    sel = db2.data.find()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"fields": "label"}, "list of names"), ({"fields": []}, "list of names"), ({"fields": ["lable"]}, "'label'"),
        ({"top": 0}, "top is a whole"), ({"seconds": 0}, "seconds is a number"), ({"fields": ["_tdb.s"]}, "internal"),
    ]  # fmt: skip
    for options, message in wrong:
        with pytest.raises(QueryError, match=message):
            sel.facets(**options)
    other = db2.data.find({"label": 1}).page(1).next
    for options, message in (
        ({"n": 0}, "n is a whole"), ({"n": 10_001}, "at most 10,000"), ({"after": "x"}, "`next` of an earlier page"),
        ({"after": 7}, "`next` of"), ({"after": other}, "of another query"), ({"seconds": -1}, "seconds is a number"),
        ({"after": "ä"}, "`next` of"), ({"after": to_text(sel.query, Mark(1, ("a",)))}, "`next` of"),
    ):  # fmt: skip
        with pytest.raises(QueryError, match=message):
            sel.page(**options)


@given(
    st.integers(0, 2**40),
    st.lists(st.none() | st.text() | st.floats(allow_nan=False) | st.integers(-(2**63), 2**63 - 1)),
)
def test_a_mark_is_read_as_it_was_written(count: int, keys: list[Any]) -> None:
    query = Query("data", {"label": 1})
    assert from_text(query, to_text(query, Mark(count, tuple(keys)))) == Mark(count, tuple(keys))


@given(st.text() | st.binary().map(lambda data: data.hex()))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(QueryError):
        from_text(Query("data"), text)
