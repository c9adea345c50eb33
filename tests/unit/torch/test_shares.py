from __future__ import annotations

from collections import Counter
from itertools import chain, islice

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tensordb_data.stream.order import Layout, runs
from tensordb_data.torch.shares import Turns, pass_layout, place

BLOCK = 4

sizes = st.integers(1, 90)
few = st.integers(1, 4)


def share(n: int, parts: int, rank: int, number: int, position: int, until: int) -> list[tuple[int, int]]:
    """(pass, position) of each sample that the engine gives to one share."""
    out = []
    while number < until:
        for run in runs(Layout(n, position, BLOCK, parts, "short"), number, rank):
            out += [(number, at % n) for at in range(run.low, run.high)]
        number, position = number + 1, 0
    return out


def loader(turns: Turns, rank: int, passes: int) -> list[list[tuple[int, int]]]:
    """The batches that one rank's loop receives from a DataLoader, from where `turns` stands."""
    parts = turns.roles * turns.world
    sequences = []
    for worker in range(turns.workers):
        role = turns.role(worker)
        if role is None:
            continue
        mine = role * turns.world + rank
        here = place(pass_layout(turns.n, BLOCK, parts, "short"), mine, 0, turns.delivered(role))
        samples = share(turns.n, parts, mine, here.number, here.position, passes)[here.drop :]
        sequences.append([samples[i : i + turns.batch_size] for i in range(0, len(samples), turns.batch_size)])
    longest = max(map(len, sequences))
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


@given(n=sizes, workers=few, world=few, batch_size=st.integers(1, 9), data=st.data())
def test_resume_continues_the_very_batches(
    n: int, workers: int, world: int, batch_size: int, data: st.DataObject
) -> None:
    assume(n >= world)
    rank = data.draw(st.integers(0, world - 1))
    whole = loader(Turns(n, workers, world, 0, batch_size), rank, 3)
    received = data.draw(st.integers(0, len(whole)))
    turns = Turns(n, workers, world, received, batch_size)
    assert loader(turns, rank, 3) == whole[received:]


def test_a_worker_too_many_does_nothing() -> None:
    turns = Turns(n=2, workers=3, world=1)
    assert [turns.role(worker) for worker in range(3)] == [0, 1, None]


def test_a_pass_counts_from_its_first_role_again() -> None:
    assert [Turns(100, 3, 1, 4).role(worker) for worker in range(3)] == [1, 2, 0]
    assert list(islice((Turns(100, 3, 1, 4, 10).delivered(role) for role in range(3)), 3)) == [20, 10, 10]


@pytest.mark.parametrize("number", [0, 7])
def test_place_jumps_over_whole_passes(number: int) -> None:
    layout = pass_layout(10, BLOCK, 2, "short")
    assert place(layout, 0, number, 5 * 1000 + 4).number == number + 1000
