"""Shuffling by blocks: every sample once, in any pieces, and neighbours of a pass from few segments."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tensordb_data.stream.order.block_shuffle import BlockShuffle
from tensordb_data.stream.order.permutation import pass_key


@given(
    n=st.integers(1, 3000),
    block=st.integers(1, 200),
    times=st.integers(1, 20),
    seed=st.integers(0, 2**63 - 1),
    pieces=st.integers(1, 7),
)
@settings(max_examples=150, deadline=None)
def test_each_row_once_a_pass_in_any_pieces(n: int, block: int, times: int, seed: int, pieces: int) -> None:
    shuffle, key = BlockShuffle(block, block * times), pass_key(seed, 0)
    rows = shuffle.rows(np.arange(n), n, key)
    assert np.array_equal(np.sort(rows), np.arange(n))
    parts = [shuffle.rows(part, n, key) for part in np.array_split(np.arange(n), pieces) if len(part)]
    assert np.array_equal(np.concatenate(parts), rows)


def test_a_window_reads_few_blocks_and_passes_differ() -> None:
    n, shuffle = 10_000, BlockShuffle(100, 1600)
    one, two = (shuffle.rows(np.arange(n), n, pass_key(0, number)) for number in range(2))
    for low in range(0, n, 1600):
        assert len(np.unique(one[low : low + 1600] // 100)) <= 17
    assert set(np.unique(one[:1600] // 100)) != set(np.unique(two[:1600] // 100))
    assert len(np.unique(one[:64] // 100)) > 8  # a batch is drawn from many of them


def test_the_order_is_the_same_for_ever() -> None:
    rows = BlockShuffle(10, 40).rows(np.arange(8), 95, pass_key(0, 0))
    assert rows.tolist() == [15, 10, 44, 48, 92, 46, 18, 19]
