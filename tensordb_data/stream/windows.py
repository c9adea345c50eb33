"""Windows: tasks of a pass that is shuffled by blocks, and what to fetch while they are delivered.

Within a window samples come at random, but all of them come: so the next window is fetched in the order in which it is
stored, as few large ranges, a part of it with each task of the window before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import chain, groupby

import numpy as np
from numpy.typing import NDArray

from tensordb_data.blobs.refs import BlobRefs
from tensordb_data.stream.block import Block
from tensordb_data.stream.order import Run

_TASKS = 4

Rows = NDArray[np.int64]
RowsAt = Callable[[Rows], Rows]
"""The rows of the plan at some positions of a pass."""
Later = Callable[[], Sequence[BlobRefs]]
"""The references of samples that are to come."""


def by_windows(
    found: Iterable[Run], window: int, size: int, block: Block, rows_at: RowsAt
) -> Iterator[tuple[list[Run], Later]]:
    """Tasks of `size` runs, none of which goes beyond its window, each with a part of the next window.

    Args:
        found: the runs of a pass, in order.
        window: positions in a window; 0: all of them, and then nothing is to be fetched ahead of its turn.
        size: runs of a task.
        block: the samples of the plan.
        rows_at: see `RowsAt`.
    """
    runs = iter(found)
    first = next(runs, None)
    if first is None:
        return
    found = chain([first], runs)
    # In few tasks samples lie so close that each of them is few ranges already.
    if window < _TASKS * size * (first.high - first.low):
        yield from ((group, tuple) for group in _groups(found, size))
        return
    windows = (_Window(list(part), block, rows_at) for _, part in groupby(found, lambda run: run.low // window))
    now = next(windows, None)
    while now is not None:
        following = next(windows, None)
        groups = list(_groups(now.runs, size))
        for number, group in enumerate(groups):
            yield group, tuple if following is None else partial(following.part, number, len(groups))
        now = following


class _Window:
    def __init__(self, found: list[Run], block: Block, rows_at: RowsAt) -> None:
        self.runs, self._block, self._rows_at = found, block, rows_at

    @cached_property
    def _rows(self) -> Rows:
        return np.sort(self._rows_at(np.concatenate([np.arange(run.low, run.high) for run in self.runs])))

    def part(self, number: int, of: int) -> Sequence[BlobRefs]:
        """The references of one of some equal parts."""
        n = len(self._rows)
        return list(self._block.take(self._rows[n * number // of : n * (number + 1) // of]).refs.values())


def _groups(found: Iterable[Run], size: int) -> Iterator[list[Run]]:
    group: list[Run] = []
    for run in found:
        group.append(run)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
