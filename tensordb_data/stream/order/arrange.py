"""Arrange: makes units of some sequences, by their lengths. A unit is a batch of at most N tokens, or a packed row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tensordb_data.stream.order.permutation import permute

Arranged = tuple[NDArray[np.int64], NDArray[np.int64]]
"""The numbers of the sequences, unit after unit: int64 [m]; and where each unit ends there: int64 [units]."""


def by_tokens(lengths: NDArray[np.int64], most: int) -> Arranged:
    """Sort sequences by length, and cut them where the longest times the count would exceed `most`.

    An empty sequence counts as one token, so that a unit has no more than `most` sequences.

    Args:
        lengths: int64 [m], none above `most`.
        most: The most tokens of a unit.
    """
    order = np.argsort(lengths, kind="stable").astype(np.int64)
    sizes = np.maximum(lengths[order], 1)
    ends = []
    low, m = 0, len(sizes)
    while low < m:
        candidates = sizes[low : low + most // int(sizes[low])]
        tokens = candidates * np.arange(1, len(candidates) + 1)  # it only grows, since the sizes do
        low += int(np.searchsorted(tokens, most, side="right"))
        ends.append(low)
    return order, np.array(ends, np.int64)


def best_fit(lengths: NDArray[np.int64], size: int) -> Arranged:
    """Pack sequences into units of `size` tokens: the longest first, each where it leaves the least room.

    Args:
        lengths: int64 [m], none above `size`.
        size: The tokens of a unit.
    """
    units: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # the units by the room that they have left
    rooms = 0  # bit r is set if there is a unit with room r
    for number in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[number])
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            found = with_room[room]
            unit = found.pop()
            if not found:
                rooms ^= 1 << room
            units[unit].append(number)
        else:
            room, unit = size, len(units)
            units.append([number])
        left = room - length
        with_room.setdefault(left, []).append(unit)
        rooms |= 1 << left
    order = np.array([number for unit in units for number in unit], np.int64)
    return order, np.cumsum([len(unit) for unit in units], dtype=np.int64)


def shuffle_units(arranged: Arranged, key: int) -> Arranged:
    """The same units in the random order of `key`."""
    order, ends = arranged
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]]) if len(ends) else ends
    turn = permute(np.arange(len(ends)), len(ends), key)
    sizes = (ends - starts)[turn]
    new_ends = np.cumsum(sizes)
    within = np.arange(len(order)) - np.repeat(new_ends - sizes, sizes)
    return order[np.repeat(starts[turn], sizes) + within], new_ends
