"""BlockShuffle: shuffles data that is larger than the cache.

A full permutation reads every segment throughout the pass, so a cache that is smaller than the data is of no use. A
block shuffle has two steps. A block is a run of neighbouring rows of the plan. First the blocks are put into a random
order. Then the samples are shuffled within each window, which is as many blocks as the cache can hold. Like the full
permutation, it is a function of (seed, pass, number of samples, position).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tensordb_data.stream.order.permutation import draw, pass_key, shuffled
from tensordb_data.stream.plan.plan import Plan
from tensordb_data.stream.spec import StreamSpec

_SHARE = 4
"""A window is at most this part of the cache (1/4), because the next one is fetched while one is delivered."""
_BLOCKS = 16
"""A window has at least so many blocks, so that a batch has samples of many blocks."""
_BLOCK_BYTES = 32 << 20
"""A block has at most the bytes of a segment."""
_OF_BLOCKS = (1 << 63) - 1
"""The number from which the key for the order of blocks is made. Windows have smaller numbers."""


@dataclass(frozen=True)
class BlockShuffle:
    """The number of rows of a block, and of a window. (0, 0) is a permutation of the whole pass."""

    block: int = 0
    window: int = 0

    def rows(self, positions: NDArray[np.int64], n: int, key: int) -> NDArray[np.int64]:
        """Find the rows at `positions` of the pass with `key`. Over all positions, each row appears exactly once.

        Args:
            positions: int64 [m], each in 0..n-1.
            n: samples in the pass.
            key: of the pass, from `pass_key`.

        Returns:
            int64 [m]: rows of the plan.
        """
        if not self.block or n <= self.block:
            return shuffled(positions, n, key)
        return self._rows_of_blocks(self._within_windows(positions, n, key), n, key)

    def _within_windows(self, positions: NDArray[np.int64], n: int, key: int) -> NDArray[np.int64]:
        windows = positions // self.window
        places = np.empty_like(positions)
        for number in np.unique(windows).tolist():
            mine = windows == number
            first = number * self.window
            size = min(self.window, n - first)
            places[mine] = first + shuffled(positions[mine] - first, size, pass_key(key, number))
        return places

    def _rows_of_blocks(self, places: NDArray[np.int64], n: int, key: int) -> NDArray[np.int64]:
        size = self.block
        count = -(-n // size)
        order = shuffled(np.arange(count), count, pass_key(key, _OF_BLOCKS))
        short = n - (count - 1) * size
        # The last block of the plan may be short. Then the places after it in the pass lie so much earlier.
        at = int(np.flatnonzero(order == count - 1)[0])
        shifted = places + np.where(places >= at * size + short, size - short, 0)
        rows: NDArray[np.int64] = order[shifted // size] * size + shifted % size
        return rows


def choose_block_shuffle(plan: Plan, cache_bytes: int | None) -> BlockShuffle:
    """Choose how to shuffle a plan whose blobs are read through a cache of `cache_bytes`. None means no cache."""
    n = len(plan)
    nbytes = sum(int(np.maximum(refs.length, 0).sum(dtype=np.int64)) for refs in plan.table.refs.values())
    if cache_bytes is None or nbytes <= cache_bytes or n == 0:
        return BlockShuffle()
    each = max(1.0, nbytes / n)
    window = max(1, int(cache_bytes / _SHARE / each))
    block = max(1, min(int(_BLOCK_BYTES / each), window // _BLOCKS))
    return BlockShuffle(block, max(block, window // block * block))


def rows_at(
    positions: NDArray[np.int64],
    n: int,
    number: int,
    spec: StreamSpec,
    block_shuffle: BlockShuffle,
    cumulative: NDArray[np.float64] | None,
) -> NDArray[np.int64]:
    """Find the rows at `positions` of pass `number`, in the order that `spec` asks for.

    The plan has `n` samples. Positions from `n` on stand for those from 0 on.
    """
    if spec.replacement:
        return draw(positions, pass_key(~spec.seed, number), n, cumulative)
    rows = positions % n if len(positions) and int(positions.max()) >= n else positions
    return block_shuffle.rows(rows, n, pass_key(spec.seed, number)) if spec.shuffle else rows
