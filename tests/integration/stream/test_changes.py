"""Data that changes during a pass: it ends as it began, here and on another host, less what is gone."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensordb_data import TensorDB, mix
from tensordb_data.errors import SampleError, StateError
from tensordb_data.stream.deliver.stream import Stream
from tensordb_data.stream.fetch import relocate
from tensordb_data.stream.mixture.mixture import Mix

N = 100
Hosts = Callable[[str], TensorDB]


@pytest.fixture
def host(mongo_uri: str, warehouse_dir: Path) -> Iterator[Hosts]:
    """Opens the warehouse as a host that has a cache of its own does."""
    opened: list[TensorDB] = []

    def connect(name: str) -> TensorDB:
        opened.append(TensorDB(mongo_uri, blobs=f"file://{warehouse_dir}/blobs", cache=warehouse_dir / name))
        return opened[-1]

    with connect("writer").data.writer("digits") as writer:
        images = np.arange(N * 12, dtype=np.uint16).reshape(N, 3, 4)
        writer.add_many(image=images, number=np.arange(N), label=np.arange(N) % 10, weight=1.0 + np.arange(N) % 3)
    yield connect
    for db in opened:
        db.close()


def stream(db: TensorDB, **options: Any) -> Stream:
    return db.data.find({"dataset": "digits"}).stream(**{"batch_size": 8, "shuffle": True, **options})


def numbers(batches: Any) -> list[int]:
    return [number for batch in batches for number in batch["number"].tolist()]


def change(db: TensorDB) -> None:
    """Samples 20 to 29 go, all labels become 77 and all weights 5, and ten samples more come."""
    found = db.data.find({"dataset": "digits"})
    db.data.find({"dataset": "digits", "number": {"$gte": 20, "$lt": 30}}).delete()
    found.update({"$set": {"label": 77, "weight": 5.0}})
    with db.data.writer("digits") as writer:
        writer.add_many(
            image=np.zeros((10, 3, 4), np.uint16), number=np.arange(N, N + 10), label=np.full(10, 5), weight=np.ones(10)
        )


def gone(number: int) -> bool:
    return 20 <= number < 30


def kept(state: Any, plans: Any) -> tuple[Any, Any]:
    """As a checkpoint keeps them."""
    return json.loads(json.dumps(state)), {ids: np.array(plan) for ids, plan in plans.items()}


@pytest.mark.parametrize("options", [
    {}, {"shuffle": False}, {"replacement": True, "shuffle": False},
    {"replacement": True, "shuffle": False, "weights": "weight"},
    {"replacement": True, "shuffle": False, "weights": lambda sample: sample["weight"]},
])  # fmt: skip
def test_a_resume_on_another_host_ends_the_pass_as_it_began(host: Hosts, options: dict[str, Any]) -> None:
    whole = numbers(stream(host("calm"), **options, passes=1))
    first = stream(host("here"), **options).pin()
    head = numbers(itertools.islice(first, 4))
    state, plans = kept(first.state_dict(), first.plans())
    assert len(plans) == 1
    change(host("here"))
    there = stream(host("there"), **options, batch_size=4)
    there.load_state_dict(state, plans=plans)
    iteration = iter(there)
    rest: list[Any] = []
    while sum(1 for number in whole if not gone(number)) > len([*rest, *filter(lambda n: not gone(n), head)]):
        batch = next(iteration)
        rest += batch["number"].tolist()
        assert (batch["label"] == batch["number"] % 10).all()  # labels of the time when the pass began
    assert rest == [number for number in whole[len(head) :] if not gone(number)]
    assert there.stats()["deleted"] == sum(map(gone, whole[len(head) :]))
    batch = next(iteration)
    assert set(batch["label"].tolist()) <= {77, 5}  # the next pass sees today's
    twice, plans = kept(there.state_dict(), there.plans())
    third = stream(host("third"), **options)
    third.load_state_dict(twice, plans=plans)
    assert next(iter(third))["number"][0] == next(iteration)["number"][0]


@pytest.mark.parametrize("shuffle", [False, True])
def test_what_on_change_says(host: Hosts, shuffle: bool) -> None:
    db = host("here")
    first = stream(db, shuffle=shuffle)
    head = numbers(itertools.islice(first, 3))
    state, plans = kept(first.state_dict(), first.plans())
    for on_change in ("error", "finish", "replan"):
        same = stream(db, shuffle=shuffle, passes=1)
        same.load_state_dict(state, on_change=on_change)  # type: ignore[arg-type]
        assert sorted(head + numbers(same)) == list(range(N))
    change(db)
    for name in ("here", "there"):
        other = stream(host(name), shuffle=shuffle, passes=1)
        with pytest.raises(StateError, match="the data has changed"):
            other.load_state_dict(state, on_change="error", plans=plans)
        other.load_state_dict(state, on_change="finish", plans=plans)
        assert sorted(head + numbers(other)) == [n for n in range(N) if not gone(n) or n in head]
        other.load_state_dict(state, on_change="replan", plans=plans)
        assert sorted(numbers(other)) == [n for n in range(N + 10) if not gone(n)]


def test_without_its_plan_a_pass_that_lost_samples_cannot_be_ended(host: Hosts) -> None:
    first = stream(host("here"))
    next(iter(first))
    state = first.state_dict()
    host("here").data.find({"dataset": "digits", "label": 3}).delete()
    here = stream(host("here"), passes=1)
    here.load_state_dict(state)  # its plan is in the cache of this host
    assert len(numbers(here)) >= 82
    two = stream(host("there"))
    with pytest.raises(StateError, match="100 samples, and 90 of that time"):
        two.load_state_dict(state)
    two.load_state_dict(state, on_change="replan")
    assert len(numbers(itertools.islice(two, 12))) == 90


@pytest.mark.parametrize("workers", [1, 3])
def test_samples_deleted_under_a_running_stream_are_skipped(
    host: Hosts, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relocate, "_LOOK", 0.0)
    db = host("here")
    one = stream(db, transform=lambda sample: sample).pin()  # a task each for two batches: not all is fetched ahead
    readers = [iter(one.shard(index, workers)) for index in range(workers)]
    head = numbers([next(readers[round_ % workers]) for round_ in range(3)])
    db.data.find({"dataset": "digits", "number": {"$gte": 5}}).delete()
    tail = [next(readers[round_ % workers]) for round_ in range(3, 60)]
    late = numbers(tail[-3:])
    assert late and all(number < 5 for number in late)  # no batch is missing: one without samples repeats others
    del head, readers


def test_all_samples_deleted(host: Hosts) -> None:
    db = host("here")
    one = stream(db).pin()
    db.data.find({"dataset": "digits"}).delete()
    with pytest.raises(SampleError, match="all 100 samples of this pass were deleted"):
        next(iter(one))


def test_a_segment_that_is_gone_is_found_elsewhere(host: Hosts, warehouse_dir: Path) -> None:
    db = host("here")
    first = stream(db)
    head = numbers(itertools.islice(first, 2))
    state, plans = kept(first.state_dict(), first.plans())
    old = {path for path in (warehouse_dir / "blobs").rglob("*") if path.is_file()}
    db.data.find({"dataset": "digits", "number": {"$gte": 20, "$lt": 80}}).delete()
    assert db.data.compact("digits").segments >= 1
    for path in old:
        path.unlink()
    again = stream(host("there"), passes=1)
    again.load_state_dict(state, plans=plans)
    batches = list(again)
    assert sorted(numbers(batches)) == [n for n in range(N) if not 20 <= n < 80 and n not in head]
    assert all((batch["image"][:, 0, 0] == batch["number"] * 12).all() for batch in batches)


def test_a_mix_finds_a_segment_elsewhere_though_samples_were_deleted(host: Hosts, warehouse_dir: Path) -> None:
    first = mix([(stream(host("here")), 1.0)])
    head = numbers(itertools.islice(first, 2))
    state, plans = kept(first.state_dict(), first.plans())
    old = {path for path in (warehouse_dir / "blobs").rglob("*") if path.is_file()}
    db = host("there")
    db.data.find({"dataset": "digits", "number": {"$gte": 20, "$lt": 80}}).delete()
    assert db.data.compact("digits").segments >= 1
    for path in old:
        path.unlink()
    again = mix([(stream(db), 1.0)])
    again.load_state_dict(state, plans=plans)
    batches: list[Any] = []
    for batch in again:
        if again.state_dict()["streams"][0]["pass"]:
            break  # this batch may hold samples of the next pass
        batches.append(batch)
    left = [n for n in range(N) if not 20 <= n < 80 and n not in head]
    assert batches and set(numbers(batches)) <= set(left)
    assert all((batch["image"][:, 0, 0] == batch["number"] * 12).all() for batch in batches)


def test_a_cursor_resumes_as_a_plan_though_what_it_delivered_is_gone(host: Hosts) -> None:
    db = host("here")
    first = stream(db, shuffle=False)
    assert numbers(itertools.islice(first, 5)) == list(range(40))
    state = first.state_dict()
    assert first.plans() == {}
    db.data.find({"dataset": "digits", "number": {"$gte": 30, "$lt": 50}}).delete()
    ranks = [stream(db, shuffle=False, rank=rank, world_size=2, passes=1) for rank in range(2)]
    for rank in ranks:
        rank.pin()
        rank.load_state_dict(state)
    assert sorted(itertools.chain(*map(numbers, ranks))) == list(range(50, N))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_mix_on_another_host_ends_each_pass_as_it_began(host: Hosts, workers: int) -> None:
    def made(db: TensorDB) -> Mix:
        found = [{"dataset": "digits", "number": {"$lt": 50}}, {"dataset": "digits", "number": {"$gte": 50}}]
        return mix([(db.data.find(part).stream(batch_size=8, shuffle=True), weight)
                    for part, weight in zip(found, (0.4, 0.6), strict=True)], seed=3)  # fmt: skip

    whole = numbers(itertools.islice(made(host("calm")), 60))
    first = made(host("here"))
    head = numbers(itertools.islice(first, 4))
    state, plans = kept(first.state_dict(), first.plans())
    assert len(plans) == 2
    change(host("here"))
    again = made(host("there"))
    again.load_state_dict(state, plans=plans)
    again._share_passes()
    readers = [iter(again.shard(index, workers)) for index in range(workers)]
    batches = [next(readers[round_ % workers]) for round_ in range(24)]
    for low, high, now in ((0, 50, 40), (50, 200, 60)):
        mine = [n for n in numbers(batches) if low <= n < high]
        old = [n for n in whole if low <= n < high][:50]
        begun = [n for n in head if low <= n < high]
        rest = [n for n in old[len(begun) :] if not gone(n)]
        assert mine[: len(rest)] == rest
        passed = mine[len(rest) : len(rest) + now]
        assert sorted(passed) == [n for n in range(low, min(high, N + 10)) if not gone(n)][: len(passed)]
    values = {n: label for batch in batches[-2:] for n, label in zip(batch["number"], batch["label"], strict=True)}
    assert set(values.values()) <= {77, 5}  # today's
    state, plans = kept(again.advance(state, 24), again.plans(again.advance(state, 24)))
    third = made(host("third"))
    third.load_state_dict(state, plans=plans)
    assert numbers(itertools.islice(third, 3)) == numbers([next(readers[round_ % workers]) for round_ in range(24, 27)])
    for reader in readers:
        reader.close()  # type: ignore[attr-defined]
