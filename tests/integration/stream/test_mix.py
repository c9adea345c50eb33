"""Mixed streams: stated proportions, each stream in its own order, exact and elastic resume."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from tensordb_data import Array, Scalar, TensorDB
from tensordb_data.errors import NotFoundError, QueryError, SampleError, StateError
from tensordb_data.stream.mixture.mixture import Mix, mix
from tensordb_data.stream.passes.planner import Planner
from tensordb_data.torch import QueryDataset


@pytest.fixture
def two(db: TensorDB) -> TensorDB:
    for name, low, high in (("clean", 0, 70), ("noisy", 1000, 1030)):
        with db.data.writer(name) as writer:
            writer.add_many(x=np.arange(low, high, dtype=np.int32).reshape(-1, 1), label=np.arange(low, high))
    return db


def mixed(db: TensorDB, seed: int = 0, weights: tuple[float, float] = (0.7, 0.3), **options: Any) -> Mix:
    options = {"batch_size": 10, "shuffle": True, **options}
    streams = [db.data.find({"dataset": name}).stream(**options) for name in ("clean", "noisy")]
    return mix(list(zip(streams, weights, strict=True)), seed=seed)


def labels(batches: Any) -> list[int]:
    return [label for batch in batches for label in batch["label"].tolist()]


def test_proportions_and_the_order_of_each_stream(two: TensorDB) -> None:
    taken = labels(itertools.islice(mixed(two), 200))
    noisy = [label for label in taken if label >= 1000]
    clean = [label for label in taken if label < 1000]
    assert 500 < len(noisy) < 700
    for name, got in (("clean", clean), ("noisy", noisy)):
        alone = labels(itertools.islice(two.data.find({"dataset": name}).stream(batch_size=10, shuffle=True), 250))
        assert alone[: len(got)] == got
    assert taken != labels(itertools.islice(mixed(two, seed=1), 200))
    within = [{label >= 1000 for label in taken[low : low + 10]} for low in range(0, 2000, 10)]
    assert sum(len(kinds) == 2 for kinds in within) > 150


def test_resume_is_exact_and_elastic(two: TensorDB) -> None:
    whole = labels(itertools.islice(mixed(two, batch_size=6), 40))
    ranks = [mixed(two, batch_size=6, rank=rank, world_size=2) for rank in range(2)]
    rounds = [labels(itertools.islice(rank, 5)) for rank in ranks]
    assert sorted(rounds[0] + rounds[1]) == sorted(whole[:60])
    state = json.loads(json.dumps(ranks[1].state_dict()))
    assert state == ranks[0].state_dict() and state["total"] == 60
    rest = mixed(two, batch_size=9)
    rest.load_state_dict(state)
    assert labels(itertools.islice(rest, 20)) == whole[60:240]
    counting = mixed(two, batch_size=9).pin()
    assert counting.advance(state, 20) == rest.state_dict()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_over_a_mix_delivers_its_batches(two: TensorDB, workers: int) -> None:
    expected = labels(itertools.islice(mixed(two), 12))
    loader = DataLoader(QueryDataset(mixed(two)), batch_size=None, num_workers=workers)
    batches = iter(loader)
    assert labels(itertools.islice(batches, 12)) == expected
    del batches


def test_transforms_fields_and_element_spec(two: TensorDB) -> None:
    both = mixed(two, transform=lambda sample, rng: {"x": sample["x"], "label": sample["label"], "noise": rng.random()})
    batch = next(iter(both))
    assert batch["x"].shape == (10, 1) and batch["noise"].shape == (10,)
    assert mixed(two).element_spec() == {"x": ("int32", (1,)), "label": ("int64", ())}
    one = two.data.find({"dataset": "clean"}).stream(batch_size=4, fields=["label"])
    other = two.data.find({"dataset": "noisy"}).stream(batch_size=4, fields=["x"])
    with pytest.raises(SampleError, match="the same fields"):
        list(itertools.islice(mix([(one, 1), (other, 1)]), 5))


def test_bad_mixes(two: TensorDB) -> None:
    good = two.data.find({"dataset": "clean"}).stream(batch_size=4)
    ended = two.data.find({"dataset": "clean"}).stream(batch_size=4, passes=1)
    larger = two.data.find({"dataset": "clean"}).stream(batch_size=5)
    for pairs in ([], [good], [(good, 0)], [(good, -1)], [(good, "a")], [(good, float("nan"))], [(3, 1)],
                  [(good, 1), (larger, 1)], [(ended, 1)]):  # fmt: skip
        with pytest.raises((QueryError, TypeError)):
            mix(pairs)  # type: ignore[arg-type]
    empty = two.data.find({"dataset": "clean", "label": -5}).stream(batch_size=4)
    with pytest.raises(NotFoundError, match="a stream of the mix has no sample"):
        next(iter(mix([(good, 1), (empty, 1)])))
    state = mixed(two).pin().state_dict()
    for other in (mixed(two, seed=1), mixed(two, weights=(1, 1)), mix([(good, 1)])):
        with pytest.raises(StateError):
            other.load_state_dict(state)
    with pytest.raises(StateError, match="expected what"):
        mixed(two).load_state_dict({})


@pytest.mark.parametrize("batch_size", [1, 10])
def test_bad_samples_within_the_budget_of_their_stream_are_skipped(two: TensorDB, batch_size: int) -> None:
    def picky(sample: dict[str, Any]) -> dict[str, Any]:
        if sample["label"] % 10 == 3:
            raise ValueError("too dark")
        return sample

    tolerant = mixed(two, transform=picky, max_failures=7, batch_size=batch_size)
    batches = list(itertools.islice(tolerant, 300 // batch_size))
    got = labels(batches)
    assert len(batches) == 300 // batch_size and not [label for label in got if label % 10 == 3]
    assert len(set(got)) > 80 and tolerant.stats()["skipped"] >= 10
    assert tolerant.state_dict()["total"] == 300
    rest = mixed(two, batch_size=batch_size)
    rest.load_state_dict(tolerant.state_dict())
    expected = labels(itertools.islice(mixed(two, batch_size=10), 40))[300:]
    assert labels(itertools.islice(rest, 100 // batch_size)) == expected
    with pytest.raises(SampleError, match="max_failures=6 is used up"):
        list(itertools.islice(mixed(two, transform=picky, max_failures=6, batch_size=batch_size), 300))


def test_a_batch_whose_samples_were_all_deleted_repeats_others(two: TensorDB) -> None:
    both = mixed(two, batch_size=1).pin()
    two.data.find({"dataset": "clean", "label": {"$ne": 7}}).delete()
    two.data.find({"dataset": "noisy"}).delete()
    assert labels(itertools.islice(both, 50)) == [7] * 50
    two.data.find({"dataset": "clean"}).delete()
    with pytest.raises(SampleError, match="no sample of any stream"):
        list(itertools.islice(both, 50))


def change(db: TensorDB) -> None:
    """Every label of `clean` is 100 more, and there are ten samples more."""
    db.data.find({"dataset": "clean"}).update({"$inc": {"label": 100}})
    with db.data.writer("clean") as writer:
        writer.add_many(x=np.arange(70, 80, dtype=np.int32).reshape(-1, 1), label=np.arange(170, 180))


def split(taken: list[int], n: int) -> list[list[int]]:
    return [taken[low : low + n] for low in range(0, len(taken) - n + 1, n)]


def test_each_pass_of_a_stream_sees_the_data_of_its_beginning(two: TensorDB) -> None:
    one = mixed(two)
    batches = iter(one)
    head = labels(next(batches) for _ in range(5))
    change(two)
    taken = head + labels(next(batches) for _ in range(95))
    clean = [label for label in taken if label < 1000]
    assert sorted(clean[:70]) == list(range(70))  # the pass in progress ends as it began
    for each in split(clean[70:], 80):
        assert sorted(each) == list(range(100, 180))
    for each in split([label for label in taken if label >= 1000], 30):
        assert sorted(each) == list(range(1000, 1030))
    state = json.loads(json.dumps(one.state_dict()))
    assert [part["n"] for part in state["streams"] if part["position"]] in ([80, 30], [80], [30])


def test_a_pinned_mix_and_a_pinned_stream_stay(two: TensorDB) -> None:
    whole = mixed(two).pin()
    clean, noisy = (two.data.find({"dataset": name}).stream(batch_size=10, shuffle=True) for name in ("clean", "noisy"))
    part = mix([(clean.pin(), 0.7), (noisy, 0.3)])
    change(two)
    two.data.find({"dataset": "noisy"}).update({"$inc": {"label": 100}})
    got = labels(itertools.islice(whole, 60))
    assert {label for label in got if label < 1000} == set(range(70)) and max(got) < 1030
    got = labels(itertools.islice(part, 60))
    assert {label for label in got if label < 1000} == set(range(70)) and min(x for x in got if x >= 1000) >= 1100


def test_what_on_change_says(two: TensorDB) -> None:
    first = mixed(two)
    head = labels(itertools.islice(first, 3))
    state, plans = json.loads(json.dumps(first.state_dict())), first.plans()
    assert len(plans) == 2
    change(two)
    other = mixed(two)
    with pytest.raises(StateError, match="the data has changed"):
        other.load_state_dict(state, on_change="error", plans=plans)
    other.load_state_dict(state, on_change="replan", plans=plans)
    got = labels(itertools.islice(other, 40))
    assert sorted([label for label in got if label < 1000][:80]) == list(range(100, 180))
    noisy = [label for label in head + got if label >= 1000]
    assert sorted(noisy[:30]) == list(range(1000, 1030))  # has not changed, and goes on
    other.load_state_dict(state, plans=plans)
    got = labels(itertools.islice(other, 40))
    assert sorted([label for label in head + got if label < 1000][:70]) == list(range(70))


def test_a_stream_of_a_mix_goes_on_where_it_stands(two: TensorDB) -> None:
    clean, noisy = (two.data.find({"dataset": name}).stream(batch_size=10) for name in ("clean", "noisy"))
    assert labels(itertools.islice(clean, 2)) == list(range(20))
    got = [label for label in labels(itertools.islice(mix([(clean, 1), (noisy, 1)]), 20)) if label < 1000]
    assert got[:60] == [*range(20, 70), *range(10)]
    assert clean.state_dict()["position"] == 20


def test_data_that_changes_all_the_time_does_not_stop_a_mix(two: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream with fewer samples than a batch begins passes in each."""
    real = Planner.versions

    def versions(self: Planner) -> Any:
        two.data.find({"dataset": "noisy", "label": 1003}).update({"$inc": {"x2": 1}})
        return real(self)

    with two.data.writer("noisy", schema={"x": Array("int32", (1,)), "label": int, "x2": Scalar("int", optional=True)}):
        pass
    two.data.find({"dataset": "noisy"}).update({"$set": {"x2": 0}})
    monkeypatch.setattr(Planner, "versions", versions)
    batches = list(itertools.islice(mixed(two, batch_size=100, fields=["label"]), 10))
    noisy = [label for label in labels(batches) if label >= 1000]
    assert len(noisy) > 200 and all(sorted(each) == list(range(1000, 1030)) for each in split(noisy, 30))
