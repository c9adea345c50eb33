from __future__ import annotations

import json
from collections import Counter
from itertools import chain

from hypothesis import assume, given
from hypothesis import strategies as st

from tensordb_data.stream.order.sharding import PassSharding, batch_ranges
from tensordb_data.stream.spec import End
from tensordb_data.torch.sample_sharding import ShardProgress

BLOCK = 4

sizes = st.integers(1, 90)
few = st.integers(1, 4)
ends = st.sampled_from(["short", "drop", "pad"])
lengths = st.lists(sizes, min_size=1, max_size=4)
"""Of a run's passes, which data that changes gives."""

Received = list[list[tuple[int, int]]]
"""Batches of (pass, position)."""


def begin(lengths: list[int], workers: int, world: int, batch_size: int = 3, end: End = "short") -> ShardProgress:
    return ShardProgress.fresh(lengths[0], BLOCK, end, workers, world, batch_size, 0, len(lengths))


def share(progress: ShardProgress, lengths: list[int], part: int) -> list[tuple[int, int]]:
    """(pass, position) of each sample that one share yields, from where the run stands."""
    place = progress.place(part, 0, lengths.__getitem__)
    if place is None:
        return []
    first, position, drop = place
    out = []
    for number in range(first, len(lengths)):
        n = lengths[number]
        sharding = PassSharding(n, position, BLOCK, progress.sharding.parts, "short")
        samples = [
            (number, at % n)
            for batch_range in batch_ranges(sharding, number, part)
            for at in range(batch_range.low, batch_range.high)
        ]
        more = int(progress.sharding.given(n)[part] - progress.sharding.received(n)[part])
        out += samples[:more] if more < 0 else samples + samples[-1:] * more
        position = 0
    return out[drop:]


def loader(progress: ShardProgress, lengths: list[int], rank: int) -> Received:
    """The batches that one rank's loop receives from a DataLoader, from where the run stands."""
    world = progress.sharding.parts // progress.roles
    sequences = []
    for worker in range(progress.workers):
        role = progress.role(worker, rank, lengths.__getitem__)
        samples = [] if role is None else share(progress, lengths, role * world + rank)
        sequences.append([samples[i : i + progress.batch_size] for i in range(0, len(samples), progress.batch_size)])
    longest = max(map(len, sequences), default=0)
    return list(
        chain.from_iterable([batches[turn] for batches in sequences if turn < len(batches)] for turn in range(longest))
    )


@given(lengths=lengths, workers=few, world=few)
def test_each_sample_once_per_pass(lengths: list[int], workers: int, world: int) -> None:
    assume(lengths[0] >= world)
    progress = begin(lengths, workers, world)
    seen = Counter(chain.from_iterable(chain.from_iterable(loader(progress, lengths, rank) for rank in range(world))))
    for number, n in enumerate(lengths):
        times = {seen[number, at] for at in range(n)}
        # Fewer samples than readers: some are read twice, so that each reader has one.
        assert times == {1} if n >= progress.sharding.parts else min(times) >= 1
    assert len(seen) == sum(lengths)


@given(lengths=lengths, workers=few, world=few)
def test_ranks_differ_by_one_sample_a_pass_at_most(lengths: list[int], workers: int, world: int) -> None:
    assume(lengths[0] >= world)
    progress = begin(lengths, workers, world)
    counts = [sum(map(len, loader(progress, lengths, rank))) for rank in range(world)]
    assert max(counts) - min(counts) <= len(lengths)


def test_a_share_that_is_through_is_asked_no_more() -> None:
    """Its batches were not received, so that those of others were: with three workers, in another order too."""
    for lengths, workers, world, rank in (([7, 31], 2, 3, 0), ([4, 9, 4, 4], 3, 1, 0), ([13] * 4, 4, 1, 0)):
        progress = begin(lengths, workers, world, batch_size=1)
        whole = loader(progress, lengths, rank)
        for step in range(len(whole) + 1):
            assert loader(progress.after(step, lengths.__getitem__), lengths, rank) == whole[step:], (lengths, step)


@given(lengths=lengths, workers=few, world=few, batch_size=st.integers(1, 9), end=ends, data=st.data())
def test_resume_continues_the_very_batches(
    lengths: list[int], workers: int, world: int, batch_size: int, end: End, data: st.DataObject
) -> None:
    """Also from a state that another rank has taken, and again after that."""
    assume(lengths[0] >= world)
    rank = data.draw(st.integers(0, world - 1))
    progress = begin(lengths, workers, world, batch_size, end)
    whole = loader(progress, lengths, rank)
    steps = sorted(data.draw(st.lists(st.integers(0, len(whole)), min_size=1, max_size=3)))
    for before, step in zip([0, *steps], steps, strict=False):
        progress = progress.after(step - before, lengths.__getitem__)
        again = ShardProgress.from_doc(
            json.loads(json.dumps(progress.to_doc())), BLOCK, end, world, progress.first, len(lengths)
        )  # fmt: skip
        assert again == progress
        assert loader(again, lengths, rank) == whole[step:]


@given(lengths=lengths, workers=few, world=few, batch_size=st.integers(1, 9), data=st.data())
def test_what_a_state_says_has_begun(
    lengths: list[int], workers: int, world: int, batch_size: int, data: st.DataObject
) -> None:
    """Passes that have begun, of any reader, and are not over: a resume needs their data, and no other."""
    assume(lengths[0] >= world)
    progress = begin(lengths, workers, world, batch_size)
    ranks = [loader(progress, lengths, rank) for rank in range(world)]
    received = data.draw(st.integers(0, min(map(len, ranks))))
    seen = {number for batches in ranks for batch in batches[:received] for number, _ in batch}
    rest = {number for batches in ranks for batch in batches[received:] for number, _ in batch}
    after = progress.after(received, lengths.__getitem__)
    begun = set(after.begun(lengths.__getitem__))
    assert begun >= seen & rest and begun <= seen | {len(lengths) - 1}
    assert not [number for number in rest if number < after.first]


def test_a_worker_too_many_does_nothing() -> None:
    progress = begin([2], workers=3, world=1)
    assert [progress.role(worker, 0, [2].__getitem__) for worker in range(3)] == [0, 1, None]


def test_a_run_counts_from_its_first_role_again() -> None:
    progress = begin([100], workers=3, world=1, batch_size=10).after(4, [100].__getitem__)
    assert [progress.role(worker, 0, [100].__getitem__) for worker in range(3)] == [1, 2, 0]
    assert progress.left([100].__getitem__).tolist() == [20, 10, 10]


def test_what_is_over_is_counted_and_no_more_looked_at() -> None:
    progress = ShardProgress.fresh(10, BLOCK, "short", 2, 1, 5, 7, None)
    asked: list[int] = []

    def length(number: int) -> int:
        asked.append(number)
        return 10

    after = progress.after(2 * 1000 + 1, length)
    assert after.first == 1007 and after.passed == (5000, 5000) and set(asked) == set(range(7, 1007))
    assert after.to_doc()["passed"] == [[2, 5000]]
    asked.clear()
    assert after.after(1, length).first == 1008 and set(asked) == {1007}


@given(n=sizes, workers=few, world=few, end=st.sampled_from(["drop", "pad"]))
def test_shares_made_even(n: int, workers: int, world: int, end: End) -> None:
    assume(n >= world)
    progress = begin([n, n], workers, world, end=end)
    ranks = [loader(progress, [n, n], rank) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == len({sum(map(len, batches)) for batches in ranks}) == 1
    seen = Counter(chain.from_iterable(chain.from_iterable(ranks)))
    parts = progress.sharding.parts
    if end == "drop":
        assert set(seen.values()) <= {1} and len(seen) == 2 * (n - n % parts)
    else:
        assert len(seen) == 2 * n and sum(seen.values()) == 2 * (n + -n % parts)
