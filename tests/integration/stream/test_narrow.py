"""A selective range is read through its index: what the server looks at is bounded by what matches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from tensordb_data import TensorDB
from tensordb_data.errors import QueryError
from tensordb_data.stream.plan import index_reader
from tensordb_data.warehouse import query_plan

N = 20_000


@pytest.fixture
def scored(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> TensorDB:
    monkeypatch.setattr(query_plan, "LARGE", 1000)
    rng = np.random.default_rng(0)
    with db.data.writer("scored") as writer:
        writer.add_many(number=np.arange(N), score=rng.permutation(N))
    db.data.create_index(["dataset", "score"])
    return db


@contextmanager
def examined(db: TensorDB) -> Iterator[dict[str, int]]:
    """What the server looks at in all reads of samples."""
    mongo, found = db.database, {"keys": 0, "docs": 0}
    mongo.command("profile", 2)
    try:
        yield found
    finally:
        mongo.command("profile", 0)
        for op in mongo["system.profile"].find({"ns": f"{mongo.name}.data"}):
            found["keys"] += op.get("keysExamined", 0)
            found["docs"] += op.get("docsExamined", 0)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("part", [0.02, 0.09])
def test_a_selective_range_reads_what_matches(scored: TensorDB, shuffle: bool, part: float) -> None:
    matching = int(part * N)
    few = scored.data.find({"dataset": "scored", "score": {"$gte": N - matching}})
    with examined(scored) as found:
        batches = list(few.stream(batch_size=64, shuffle=shuffle, passes=1))
    numbers = np.concatenate([batch["number"] for batch in batches])
    scores = np.concatenate([batch["score"] for batch in batches])
    assert len(set(numbers.tolist())) == matching and scores.min() == N - matching
    assert shuffle or (np.diff(numbers) > 0).all()
    # In order, the first batch comes from a scan or a sort, whichever is sooner there; then all the others.
    ahead = 0 if shuffle else 102 / part  # the server compares its plans by their first 101
    assert matching <= found["docs"] <= 1.1 * matching + ahead
    # Once counted, and once read.
    assert found["keys"] <= 2.2 * matching + 2 * ahead
    plan = few.explain()
    assert plan["returned"] == matching


def test_a_range_that_most_match_is_scanned_in_order(scored: TensorDB) -> None:
    most = scored.data.find({"dataset": "scored", "score": {"$gte": N // 4}})
    with examined(scored) as found:
        stream = most.stream(batch_size=64, shuffle=True, passes=1)
        assert sum(len(batch["number"]) for batch in stream) == N - N // 4
    assert found["docs"] <= N
    assert found["keys"] <= 1.2 * N, "the count gives up at a tenth"


def index_of(selection: Any) -> str | None:
    return query_plan.narrowing_index(selection.bound, selection.bound.filter(), N)


def test_only_an_index_that_narrows_and_orders_is_taken(scored: TensorDB) -> None:
    few: dict[str, Any] = {"dataset": "scored", "score": {"$lt": 50}}
    assert "score" in str(index_of(scored.data.find(few)))
    assert index_of(scored.data.find({"dataset": "scored"})) is None
    assert index_of(scored.data.find({"dataset": "scored", "number": {"$lt": 50}})) is None  # has no index
    assert query_plan.narrowing_index(scored.data.find(few).bound, scored.data.find(few).bound.filter(), 999) is None


@pytest.mark.parametrize("when", ["in mid-stream", "as it is read"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_an_index_that_is_dropped_is_done_without(
    scored: TensorDB, shuffle: bool, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = (index for index in scored.database["data"].index_information() if "score" in index)
    chosen: list[str | None] = []
    choose = index_reader.narrowing_index

    def dropping(*args: Any) -> str | None:
        found = choose(*args)
        chosen.append(found)
        if found is not None and when == "as it is read":
            scored.database["data"].drop_index(found)
        return found

    monkeypatch.setattr(index_reader, "narrowing_index", dropping)
    few = scored.data.find({"dataset": "scored", "score": {"$lt": 1500}})
    numbers: list[int] = []
    for batch in few.stream(batch_size=64, shuffle=shuffle, passes=2):
        if not numbers and when == "in mid-stream":
            scored.database["data"].drop_index(name)
        numbers += batch["number"].tolist()
    assert len(numbers) == 3000 and len(set(numbers)) == 1500
    assert when == "in mid-stream" or chosen[:2] == [name, None]


def test_a_dropped_index_that_is_needed_is_named_and_the_stream_goes_on_when_it_is_back(db: TensorDB) -> None:
    with db.data.writer("texts") as writer:
        writer.add_many(number=np.arange(3000), title=["some words"] * 3000)
    data = db.database["data"]
    data.create_index([("title", "text")], name="words")
    stream = db.data.find({"dataset": "texts", "$text": {"$search": "words"}}).stream(batch_size=10, passes=1)
    numbers: list[int] = []

    def read() -> None:
        for batch in stream:
            if not numbers:
                data.drop_index("words")
            numbers.extend(batch["number"].tolist())

    with pytest.raises(QueryError, match=r"the index of \$text or \$near is not there, or was dropped meanwhile"):
        read()
    assert 0 < len(numbers) < 3000
    data.create_index([("title", "text")], name="words")
    read()
    assert numbers == list(range(3000))
