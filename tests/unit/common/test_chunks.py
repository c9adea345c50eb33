"""Pieces have all items, in order, and none is larger than it may be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tensordb_data.common.chunks import batched, chunks, runs_by_size

ITEMS = st.lists(st.integers(0, 9), max_size=30)


@given(ITEMS, st.integers(1, 10))
def test_chunks_and_batches(items, size):
    pieces = list(chunks(items, size))
    assert pieces == list(batched(iter(items), size))
    assert [item for piece in pieces for item in piece] == items
    assert all(len(piece) == size for piece in pieces[:-1]) and all(pieces)


@given(ITEMS, st.integers(0, 20))
def test_runs_are_as_long_as_their_size_allows(sizes, limit):
    runs = list(runs_by_size(sizes, limit))
    assert [at for low, high in runs for at in range(low, high)] == list(range(len(sizes)))
    for low, high in runs:
        assert high - low == 1 or sum(sizes[low:high]) <= limit
        assert high == len(sizes) or sum(sizes[low : high + 1]) > limit
