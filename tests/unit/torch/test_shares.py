from __future__ import annotations

from collections import Counter
from itertools import chain, islice

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tensordb_data.stream.order import Layout, runs
from tensordb_data.stream.spec import End
from tensordb_data.torch.shares import Share, Turns

BLOCK = 4

sizes = st.integers(1, 90)
few = st.integers(1, 4)
ends = st.sampled_from(["short", "drop", "pad"])


def share(n: int, parts: int, rank: int, number: int, position: int, until: int) -> list[tuple[int, int]]:
    """(pass, position) of each sample that the engine gives to one share."""
    out = []
    while number < until:
        for run in runs(Layout(n, position, BLOCK, parts, "short"), number, rank):
            out += [(number, at % n) for at in range(run.low, run.high)]
        number, position = number + 1, 0
    return out


def loader(turns: Turns, rank: int, passes: int, end: End = "short") -> list[list[tuple[int, int]]]:
    """The batches that one rank's loop receives from a DataLoader, from where `turns` stands."""
    parts = turns.roles * turns.world
    sequences = []
    for worker in range(turns.workers):
        role = turns.role(worker)
        if role is None:
            continue
        mine = Share(turns.n, BLOCK, parts, role * turns.world + rank, end)
        here = mine.place(0, turns.delivered(role))
        received = share(turns.n, parts, mine.rank, here.number, here.position, passes)
        samples = list(mine.even(received, here.position))[here.drop :]
        sequences.append([samples[i : i + turns.batch_size] for i in range(0, len(samples), turns.batch_size)])
    longest = max(map(len, sequences), default=0)
    return list(
        chain.from_iterable([batches[turn] for batches in sequences if turn < len(batches)] for turn in range(longest))
    )


@given(n=sizes, workers=few, world=few, passes=st.integers(1, 3))
def test_each_sample_once_per_pass(n: int, workers: int, world: int, passes: int) -> None:
    assume(n >= world)
    turns = Turns(n, workers, world, 0, 3)
    seen = Counter(chain.from_iterable(chain.from_iterable(loader(turns, rank, passes) for rank in range(world))))
    assert seen == {(number, at): 1 for number in range(passes) for at in range(n)}


@given(n=sizes, workers=few, world=few, passes=st.integers(1, 3))
def test_ranks_differ_by_one_sample_a_pass_at_most(n: int, workers: int, world: int, passes: int) -> None:
    assume(n >= world)
    turns = Turns(n, workers, world, 0, 3)
    counts = [sum(map(len, loader(turns, rank, passes))) for rank in range(world)]
    assert max(counts) - min(counts) <= passes


@given(n=sizes, workers=few, world=few, batch_size=st.integers(1, 9), end=ends, data=st.data())
def test_resume_continues_the_very_batches(
    n: int, workers: int, world: int, batch_size: int, end: End, data: st.DataObject
) -> None:
    assume(n >= world)
    rank = data.draw(st.integers(0, world - 1))
    whole = loader(Turns(n, workers, world, 0, batch_size), rank, 3, end)
    received = data.draw(st.integers(0, len(whole)))
    turns = Turns(n, workers, world, received, batch_size)
    assert loader(turns, rank, 3, end) == whole[received:]


def test_a_worker_too_many_does_nothing() -> None:
    turns = Turns(n=2, workers=3, world=1)
    assert [turns.role(worker) for worker in range(3)] == [0, 1, None]


def test_a_pass_counts_from_its_first_role_again() -> None:
    assert [Turns(100, 3, 1, 4).role(worker) for worker in range(3)] == [1, 2, 0]
    assert list(islice((Turns(100, 3, 1, 4, 10).delivered(role) for role in range(3)), 3)) == [20, 10, 10]


@pytest.mark.parametrize("number", [0, 7])
def test_place_jumps_over_whole_passes(number: int) -> None:
    assert Share(10, BLOCK, 2, 0, "short").place(number, 5 * 1000 + 4).number == number + 1000


@given(n=sizes, workers=few, world=few, end=st.sampled_from(["drop", "pad"]))
def test_shares_made_even(n: int, workers: int, world: int, end: End) -> None:
    assume(n >= world)
    turns = Turns(n, workers, world, 0, 3)
    ranks = [loader(turns, rank, 2, end) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == len({sum(map(len, batches)) for batches in ranks}) == 1
    seen = Counter(chain.from_iterable(chain.from_iterable(ranks)))
    parts = turns.roles * world
    if end == "drop":
        assert set(seen.values()) <= {1} and len(seen) == 2 * (n - n % parts)
    else:
        assert len(seen) == 2 * n and sum(seen.values()) == 2 * (n + -n % parts)
