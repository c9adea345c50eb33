"""Cut samples into chunks, at places that their `_id`s decide.

So a set from which a sample was deleted, or to which some were added, has nearly all of its chunks in common with the
set before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from tensordb_data.frozen.columns import Block

AVERAGE = 1 << 15
"""Samples of a chunk, about."""
MOST = 1 << 17
"""Samples of a chunk, at most."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_GATHERED = 1 << 18  # rows that are cut at once


def cut(blocks: Iterable[Block], average: int = AVERAGE, most: int = MOST) -> Iterator[Block]:
    """The same samples in chunks, whatever blocks they came in.

    Args:
        blocks: The samples; all blocks have the same columns.
        average: How many samples a chunk has, about; a power of two.
        most: How many it has at most.
    """
    waiting: list[Block] = []
    rows = 0
    for block in blocks:
        if not len(block):
            continue
        waiting.append(block)
        rows += len(block)
        if rows >= max(_GATHERED, 2 * most):
            whole = Block.joined(waiting)
            ends = _ends(whole.ids, average, most)
            yield from _between(whole, ends)
            waiting = [whole.take(np.arange(ends[-1], len(whole)))] if ends[-1] < len(whole) else []
            rows = len(whole) - ends[-1]
    if waiting:
        whole = Block.joined(waiting)
        ends = _ends(whole.ids, average, most)
        if not ends or ends[-1] < len(whole):
            ends.append(len(whole))
        yield from _between(whole, ends)


def _between(whole: Block, ends: list[int]) -> Iterator[Block]:
    low = 0
    for high in ends:
        yield whole.take(np.arange(low, high))
        low = high


def _ends(ids: NDArray[np.uint8], average: int, most: int) -> list[int]:
    """The rows at which chunks end that begin at row 0; the last one may be followed by a part of a chunk."""
    key = np.ascontiguousarray(ids[:, 4:12]).view(">u8").reshape(-1).astype(np.uint64)
    marks = (key * _FACTOR) >> np.uint64(40) & np.uint64(average - 1)
    found: list[int] = []
    low = 0
    for high in [*(np.flatnonzero(marks == 0) + 1).tolist(), len(ids)]:
        while high - low > most:
            low += most
            found.append(low)
        if high < len(ids) or (high > low and marks[-1] == 0):
            low = high
            found.append(low)
    return list(dict.fromkeys(found))
