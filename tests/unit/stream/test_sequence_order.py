"""Batches by tokens and packs: each sample once, none too large, the same twice, from any place, on all ranks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensordb_data import QueryError
from tensordb_data.query.query import Query
from tensordb_data.stream.order.arrange import best_fit, by_tokens, shuffle_units
from tensordb_data.stream.order.items import Items
from tensordb_data.stream.order.sequence_order import SequenceOrder, sequence_order
from tensordb_data.stream.order.sequence_sharding import SequenceSharding
from tensordb_data.stream.order.sharding import batch_ranges
from tensordb_data.stream.spec import StreamSpec
from tensordb_data.stream.tokens import Tokens

MOST = 16
LENGTHS = st.lists(st.integers(0, MOST), min_size=1, max_size=120)
KINDS = st.sampled_from([{"n": MOST}, {"pack": MOST}])


def order_of(lengths: list[int], kind: dict[str, int], window: int, shuffle: bool, number: int = 0) -> SequenceOrder:
    found = np.array(lengths, np.int64)
    items = Items(np.arange(len(found)), np.zeros(len(found), np.int64), found, found)
    tokens = Tokens(**kind, window=window)  # type: ignore[arg-type]
    spec = StreamSpec(Query("data", {}), 1, shuffle=shuffle, seed=3, tokens=tokens)
    return sequence_order(items, spec, number, (0, 0))


def size(order: SequenceOrder, low: int, high: int) -> int:
    """The tokens of a unit: its longest times the count, or the sum of a pack."""
    found = order.take(np.arange(low, high)).length
    return int(found.sum() if order.tokens.n is None else max(1, found.max()) * len(found))


@given(lengths=LENGTHS, key=st.integers(0, 2**64 - 1))
@settings(max_examples=100, deadline=None)
def test_units_hold_each_sequence_once_and_no_more_than_they_can(lengths: list[int], key: int) -> None:
    found = np.array(lengths, np.int64)
    for made in (by_tokens(found, MOST), best_fit(found, MOST)):
        for order, ends in (made, shuffle_units(made, key)):
            assert sorted(order.tolist()) == list(range(len(found))) and ends[-1] == len(found)
        assert {tuple(part.tolist()) for part in np.split(made[0], made[1][:-1])} == {
            tuple(part.tolist()) for part in np.split(order, ends[:-1])
        }
    order, ends = best_fit(found, MOST)
    sums = sorted(int(found[part].sum()) for part in np.split(order, ends[:-1]))
    assert len(sums) < 2 or sums[0] + sums[1] > MOST  # otherwise the shorter one would have gone into the other


@given(
    lengths=LENGTHS, kind=KINDS, window=st.integers(1, 50), shuffle=st.booleans(), world=st.sampled_from([1, 2, 7]),
    batch_size=st.integers(1, 3), end=st.sampled_from(["short", "drop", "pad"]), stop=st.integers(0, 40),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_ranks_get_equally_many_batches_and_a_resume_the_same_ones(
    lengths: list[int],
    kind: dict[str, int],
    window: int,
    shuffle: bool,
    world: int,
    batch_size: int,
    end: Any,
    stop: int,
) -> None:
    batch_size = batch_size if "pack" in kind else 1
    order, twin = (order_of(lengths, kind, window, shuffle) for _ in "12")
    n = len(lengths)
    whole = SequenceSharding(order, 0, batch_size, world, end)
    ranks = [list(batch_ranges(whole, 0, rank)) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {whole.rounds}
    inner = list(itertools.chain.from_iterable(zip(*ranks, strict=True)))
    for batch in inner:
        units = order.unit_of(np.arange(batch.low, batch.high))
        assert units[-1] < batch_size
        for unit in range(int(units[-1]) + 1):
            mine = batch.low + np.flatnonzero(units == unit)
            assert size(order, int(mine[0]), int(mine[-1]) + 1) <= MOST
    delivered = [position for batch in inner for position in range(batch.low, batch.high)]
    items = order.take(np.array(delivered, np.int64)).rows.tolist() if delivered else []
    if end == "drop":
        assert len(set(items)) == len(items)
    else:
        assert sorted(set(items)) == list(range(n))
        if end == "short" and "n" in kind and n >= 2 * world * MOST:
            assert len(items) == n  # there are enough samples for all ranks to have some of their own
        assert world > 1 or end == "pad" or len(items) == n
    assert twin.take(np.array(delivered, np.int64)).rows.tolist() == items
    stop = min(stop, whole.rounds)
    if (position := whole.position(stop)) < n:
        rest = SequenceSharding(order_of(lengths, kind, window, shuffle), position, batch_size, world, end)
        again = [list(batch_ranges(rest, 0, rank)) for rank in range(world)]
        assert again == [batches[stop:] for batches in ranks]


@given(lengths=LENGTHS, kind=KINDS, worlds=st.tuples(st.integers(1, 7), st.integers(1, 7)), stop=st.integers(0, 20))
@settings(max_examples=100, deadline=None)
def test_a_resume_with_other_ranks_delivers_exactly_the_rest(
    lengths: list[int], kind: dict[str, int], worlds: tuple[int, int], stop: int
) -> None:
    order = order_of(lengths, kind, 20, True)
    first = SequenceSharding(order, 0, 1, worlds[0], "short")
    position = first.position(min(stop, first.rounds))
    if position < len(lengths):
        rest = SequenceSharding(order, position, 1, worlds[1], "short")
        batches = [rest.batch(round_, rank) for round_ in range(rest.rounds) for rank in range(worlds[1])]
        got = [at % len(lengths) for low, high in batches for at in range(low, high)]
        assert set(range(position, len(lengths))) <= set(got)
        assert got[: len(lengths) - position] == list(range(position, len(lengths)))


def test_passes_differ_if_they_are_shuffled_and_only_then() -> None:
    lengths = np.random.default_rng(0).integers(1, MOST, 200).tolist()
    for shuffle in (True, False):
        orders = [order_of(lengths, {"n": MOST}, 64, shuffle, number).take(np.arange(200)).rows for number in (0, 1)]
        assert np.array_equal(*orders) is not shuffle


@pytest.mark.parametrize("options", [{"follow": True}, {"replacement": True}, {"batch_size": 2**27}])
def test_what_does_not_fit_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(QueryError, match="pack"):
        StreamSpec(Query("data", {}), **{"batch_size": 1, "tokens": Tokens(pack=16), **options})
