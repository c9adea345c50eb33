"""Permutation: maps a position in a pass to a row of the plan, as a pure function of (seed, pass, number of samples).

`permute` needs no table. It is a keyed Feistel network (Luby and Rackoff, 1988) over the smallest power of two that
holds all rows. It is applied again to results outside of the rows, until they lie inside (Black and Rogaway, 2002).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Unsigned = NDArray[np.unsignedinteger[Any]]
_ROUNDS = 6
_TABLE = 1 << 20
_MASK64 = (1 << 64) - 1


def _mix(value: int) -> int:
    """One step of splitmix64 (Steele, Lea, Flood, 2014): maps whole numbers to well-spread 64-bit numbers."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def pass_key(seed: int, number: int) -> int:
    """The 64-bit key of pass `number` under `seed`."""
    return _mix(_mix(seed) ^ number)


def permute(positions: NDArray[np.int64], n: int, key: int) -> NDArray[np.int64]:
    """Find the rows at some positions of a shuffled pass.

    Args:
        positions: int64 [m], each in 0..n-1.
        n: samples in the pass, below 2**62.
        key: of the pass, from `pass_key`.

    Returns:
        int64 [m]: rows of the plan. Over all n positions, each row appears exactly once.
    """
    if n <= 1:
        return np.zeros_like(positions)
    bits = _bits(n)
    rows = _feistel(positions.astype(np.uint32 if bits <= 32 else np.uint64), bits, key)
    outside = np.flatnonzero(rows >= n)
    while outside.size:
        walked = _feistel(rows[outside], bits, key)
        rows[outside] = walked
        outside = outside[walked >= n]
    return rows.astype(np.int64)


def shuffled(positions: NDArray[np.int64], n: int, key: int) -> NDArray[np.int64]:
    """The same as `permute`. For a pass of up to a million samples, the rows are looked up in a table made once."""
    return _table(n, key)[positions] if n <= _TABLE else permute(positions, n, key)


@lru_cache(maxsize=4)
def _table(n: int, key: int) -> NDArray[np.int64]:
    if n <= 1:
        return np.zeros(n, np.int64)
    bits = _bits(n)
    whole = _feistel(np.arange(1 << bits, dtype=np.uint32), bits, key)
    rows = whole[:n].copy()
    outside = np.flatnonzero(rows >= n)
    while outside.size:  # all that can be met on the way is known already
        walked = whole[rows[outside]]
        rows[outside] = walked
        outside = outside[walked >= n]
    found: NDArray[np.int64] = rows.astype(np.int64)
    return found


def draw(positions: NDArray[np.int64], key: int, n: int, cumulative: NDArray[np.float64] | None) -> NDArray[np.int64]:
    """Draw rows with replacement. The row at a position does not depend on the rows at other positions.

    Args:
        positions: int64 [m].
        key: of the pass, from `pass_key`.
        n: samples in the pass.
        cumulative: float64 [n]: running sums of the weights. `None` gives every sample the same chance.

    Returns:
        int64 [m].
    """
    state = positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    uniform = ((state ^ (state >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    if cumulative is None:
        return np.asarray(uniform * n, np.int64)
    rows = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    last = np.searchsorted(cumulative, cumulative[-1])  # by rounding, no sample of weight 0 at the end may be drawn
    return np.asarray(np.minimum(rows, last), np.int64)


def _bits(n: int) -> int:
    """The bits of the smallest power of two that holds n rows, and at least 2."""
    return max(2, (n - 1).bit_length())


def _feistel(values: Unsigned, bits: int, key: int) -> Unsigned:
    """Permute some of the numbers of so many bits: uint32 or uint64 [m]."""
    dtype = values.dtype.type
    wide = dtype is np.uint64
    low = bits // 2
    high = bits - low
    multiplier = dtype(0xD6E8FEB86659FD93 if wide else 0x85EBCA6B)
    shift = dtype(32 if wide else 15)
    left, right = values >> dtype(low), values & dtype((1 << low) - 1)
    left_mask, right_mask = dtype((1 << high) - 1), dtype((1 << low) - 1)
    mixed, shifted = np.empty_like(left), np.empty_like(left)  # fresh memory for each step would take longer than it
    for turn in range(_ROUNDS):
        source, target, mask = (right, left, left_mask) if turn % 2 == 0 else (left, right, right_mask)
        np.bitwise_xor(source, dtype(_mix(key ^ (turn + 1)) >> (0 if wide else 32)), out=mixed)
        mixed *= multiplier
        np.right_shift(mixed, shift, out=shifted)
        mixed ^= shifted
        mixed *= multiplier
        np.right_shift(mixed, shift, out=shifted)
        mixed ^= shifted
        mixed &= mask
        target ^= mixed
    left <<= dtype(low)
    left |= right
    joined: Unsigned = left
    return joined
