"""Order is a pure function: every sample once a pass, the same on any number of ranks and workers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensordb_data.stream.order.permutation import draw, pass_key, permute, shuffled
from tensordb_data.stream.order.sharding import PassSharding, batch_ranges

ENDS = st.sampled_from(["short", "drop", "pad"])
SIZES = {"n": st.integers(1, 300), "batch_size": st.integers(1, 40), "world": st.integers(1, 7)}


@given(n=st.integers(1, 5000), seed=st.integers(0, 2**63 - 1), number=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_permute_is_a_bijection(n: int, seed: int, number: int) -> None:
    rows = permute(np.arange(n), n, pass_key(seed, number))
    assert np.array_equal(np.sort(rows), np.arange(n))


def test_permute_is_the_same_piecewise_and_for_ever() -> None:
    whole = permute(np.arange(1000), 1000, pass_key(7, 3))
    pieces = np.concatenate([permute(np.arange(low, low + 50), 1000, pass_key(7, 3)) for low in range(0, 1000, 50)])
    assert np.array_equal(whole, pieces)
    assert np.array_equal(whole, shuffled(np.arange(1000), 1000, pass_key(7, 3)))
    assert permute(np.arange(8), 1000, pass_key(0, 0)).tolist() == [325, 843, 993, 459, 649, 434, 597, 751]
    large = [136474252136, 964041772745, 738568933338, 118462403033]
    assert permute(np.arange(4), 2**40, pass_key(0, 0)).tolist() == large


def test_permute_spreads_neighbours_like_a_random_permutation() -> None:
    n = 4096
    rows = permute(np.arange(n), n, pass_key(1, 1))
    random = np.random.default_rng(0).permutation(n)
    ours, reference = np.abs(np.diff(rows)).mean(), np.abs(np.diff(random)).mean()
    assert abs(ours - reference) < 0.05 * n
    counts = np.zeros((8, 8))
    for seed in range(4000):
        counts[np.arange(8), permute(np.arange(8), 8, pass_key(seed, 0))] += 1
    assert np.abs(counts - 500).max() < 110  # five standard deviations


def test_passes_and_seeds_differ() -> None:
    orders = {tuple(permute(np.arange(100), 100, pass_key(seed, number))) for seed in range(5) for number in range(5)}
    assert len(orders) == 25


@given(**SIZES, end=ENDS, start=st.integers(0, 299))
@settings(max_examples=400, deadline=None)
def test_each_rank_gets_the_same_number_of_batches_and_no_sample_twice(
    n: int, batch_size: int, world: int, end: str, start: int
) -> None:
    start = min(start, n - 1)
    sharding = PassSharding(n, start, batch_size, world, end)  # type: ignore[arg-type]
    batches = [sharding.batch(round_, rank) for round_ in range(sharding.rounds) for rank in range(world)]
    assert all(0 < high - low <= batch_size for low, high in batches)
    delivered = list(itertools.chain.from_iterable(range(low, high) for low, high in batches))
    left = n - start
    if end == "drop":
        assert delivered == list(range(start, start + left // (batch_size * world) * batch_size * world))
    elif end == "pad":
        assert delivered == list(range(start, start + sharding.rounds * batch_size * world))
        assert len(delivered) - left < batch_size * world
    elif left >= world and (batch_size > 1 or left % world == 0):
        assert delivered == list(range(start, n))
    else:
        assert delivered[:left] == list(range(start, n)) and len(delivered) - left < world
    assert sharding.position(0) == start and sharding.position(sharding.rounds) == (n if sharding.rounds else start)


@given(**SIZES, stop=st.integers(0, 50), other_world=st.integers(1, 5), other_batch=st.integers(1, 30))
@settings(max_examples=400, deadline=None)
def test_resuming_with_other_ranks_delivers_exactly_the_rest(
    n: int, batch_size: int, world: int, stop: int, other_world: int, other_batch: int
) -> None:
    sharding = PassSharding(n, 0, batch_size, world, "short")
    stop = min(stop, sharding.rounds)
    done = [sharding.batch(round_, rank) for round_ in range(stop) for rank in range(world)]
    position = sharding.position(stop)
    first = list(itertools.chain.from_iterable(range(low, high) for low, high in done))
    assert first[:position] == list(range(min(position, len(first))))
    if position == n:
        return
    rest = PassSharding(n, position, other_batch, other_world, "short")
    after = [rest.batch(round_, rank) for round_ in range(rest.rounds) for rank in range(other_world)]
    second = list(itertools.chain.from_iterable(range(low, high) for low, high in after))
    assert second[: n - position] == list(range(position, n))


@given(**SIZES, end=ENDS, stop=st.integers(0, 30))
@settings(max_examples=300, deadline=None)
def test_resuming_with_the_same_ranks_gives_the_same_batches(
    n: int, batch_size: int, world: int, end: str, stop: int
) -> None:
    sharding = PassSharding(n, 0, batch_size, world, end)  # type: ignore[arg-type]
    stop = min(stop, sharding.rounds)
    rest = PassSharding(n, sharding.position(stop), batch_size, world, end)  # type: ignore[arg-type]
    if sharding.position(stop) < n:
        whole = [sharding.batch(round_, rank) for round_ in range(stop, sharding.rounds) for rank in range(world)]
        assert [rest.batch(round_, rank) for round_ in range(rest.rounds) for rank in range(world)] == whole


@given(**SIZES, workers=st.integers(1, 5), passes=st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_workers_in_turn_give_the_batches_of_one_reader(
    n: int, batch_size: int, world: int, workers: int, passes: int
) -> None:
    def sequence(worker: int, workers: int) -> list[tuple[int, int, int]]:
        found, first = [], 0
        for number in range(passes):
            sharding = PassSharding(n, 0, batch_size, world, "short")
            found += [
                (batch_range.number, batch_range.low, batch_range.high)
                for batch_range in batch_ranges(sharding, number, 0, worker, workers, first)
            ]
            first += sharding.rounds
        return found

    parts = [iter(sequence(worker, workers)) for worker in range(workers)]
    turns = []
    for worker in itertools.cycle(range(workers)):
        item = next(parts[worker], None)
        if item is None:
            break
        turns.append(item)
    assert turns == sequence(0, 1)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_smallest_passes(n: int) -> None:
    assert sorted(permute(np.arange(n), n, pass_key(0, 0))) == list(range(n))


@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 3.0, 0.5, 0.0]])
def test_draws_follow_the_weights_and_depend_on_the_position_alone(weights: list[float] | None) -> None:
    sums = None if weights is None else np.cumsum(weights)
    rows = draw(np.arange(50_000), pass_key(5, 0), 5, sums)
    chances = np.full(5, 0.2) if weights is None else np.array(weights) / sum(weights)
    assert np.abs(np.bincount(rows, minlength=5) / 50_000 - chances).max() < 0.01
    assert weights is None or not np.isin(rows, [1, 4]).any()
    assert np.array_equal(rows[100:200], draw(np.arange(100, 200), pass_key(5, 0), 5, sums))
    assert not np.array_equal(rows, draw(np.arange(50_000), pass_key(5, 1), 5, sums))
