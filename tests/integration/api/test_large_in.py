"""A large `$in` is asked in several parts, and answers as one that is small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from bson import ObjectId

from tensordb_data import Selection, TensorDB
from tensordb_data.errors import QueryError
from tensordb_data.query import large_in

N = 300


@pytest.fixture
def ids(db: TensorDB) -> list[ObjectId]:
    found: list[ObjectId] = []
    for name in ("a", "b"):
        with db.data.writer(name) as writer:
            n = np.arange(N)
            found += writer.add_many(x=n.astype(np.float32), n=n, of=[[i, i + 1] for i in range(N)], odd=n % 2)
    return found


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on, filters are large early."""

    def set() -> None:
        monkeypatch.setattr(large_in, "_LARGEST", 1000)
        monkeypatch.setattr(large_in, "_PART", 500)

    return set


def by_id(ids: list[ObjectId]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"$and": [{"_id": {"$in": [ids[i] for i in rng.permutation(len(ids))[: N + 50]]}}, {"odd": 1}]}


def by_list(ids: list[ObjectId]) -> dict[str, Any]:
    return {"of": {"$in": list(range(40, 240))}}  # most samples match two parts


@pytest.mark.parametrize("filter", [by_id, by_list])
@pytest.mark.parametrize("extra", [{}, {"dataset": "a"}])
def test_it_reads_what_one_query_reads(
    db: TensorDB, ids: list[ObjectId], small: Callable[[], None], filter: Any, extra: Any
) -> None:
    def read() -> list[Any]:
        selection = db.data.find({**filter(ids), **extra})
        limited = db.data.find({**filter(ids), **extra}, limit=70)
        return [
            [sample.id for sample in selection], selection.count(), [sample.id for sample in limited], limited.count(),
            sorted(selection.distinct("n")), selection.distinct("dataset"), selection.head(1)[0]["n"],
            *(streamed(some, **options) for some in (selection, limited) for options in ({}, {"shuffle": True})),
        ]  # fmt: skip

    def streamed(selection: Selection[Any], **options: Any) -> list[int]:
        stream = selection.stream(batch_size=32, fields=["n", "x"], passes=1, seed=5, **options)
        return [n for batch in stream for n in batch["n"].tolist()]

    whole = read()
    small()
    assert db.data.find({**filter(ids), **extra}).query.split is not None
    assert read() == whole


def test_a_stream_resumes(db: TensorDB, ids: list[ObjectId], small: Callable[[], None]) -> None:
    small()
    stream = db.data.find(by_list(ids)).stream(batch_size=50, fields=["n"], passes=1)
    begun = iter(stream)
    before = [next(begun)["n"] for _ in range(3)]
    state = stream.state_dict()
    rest = [batch["n"] for batch in begun]
    again = db.data.find(by_list(ids)).stream(batch_size=50, fields=["n"], passes=1)
    again.load_state_dict(state)
    assert np.concatenate([batch["n"] for batch in again]).tolist() == np.concatenate(rest).tolist()
    assert len(np.concatenate([*before, *rest])) == db.data.find(by_list(ids)).count()


def test_it_writes_by_id(db: TensorDB, ids: list[ObjectId], small: Callable[[], None]) -> None:
    expected = {sample.id for sample in db.data.find(by_id(ids))}
    small()
    selection = db.data.find(by_id(ids))
    assert selection.query.split is not None
    assert selection.update({"$inc": {"n": 1000}}) == len(expected)
    assert {sample.id for sample in db.data.find({"n": {"$gte": 1000}})} == expected
    assert selection.tag("seen") == len(expected) == db.data.find({"tags": "seen"}).count()
    assert db.data.find({"_id": {"$in": ids}}, limit=10).tag("first") == 10
    assert selection.delete() == len(expected)
    assert db.data.find().count() == len(ids) - len(expected) and selection.count() == 0


def test_what_is_not_split_says_so(db: TensorDB, ids: list[ObjectId], small: Callable[[], None]) -> None:
    small()
    by_field = db.data.find(by_list(ids))
    for call in (
        lambda: by_field.update({"$inc": {"n": 1}}), lambda: by_field.tag("a"), lambda: by_field.untag("a"),
        by_field.delete, by_field.watch, by_field.explain, lambda: db.data.find(by_id(ids), sort="n"),
    ):  # fmt: skip
        with pytest.raises(QueryError, match="is split, of a query without a sort"):
            call()
    assert db.data.find({"n": {"$gte": 0}, "tags": []}).count() == len(ids)
