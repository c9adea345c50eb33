"""Mixed streams: stated proportions, each stream in its own order, exact and elastic resume."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from tensordb_data import TensorDB
from tensordb_data.errors import NotFoundError, QueryError, SampleError, StateError
from tensordb_data.stream import Mix, mix
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
    counted = rest.advance(state, 20)
    assert counted == rest.state_dict()


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
