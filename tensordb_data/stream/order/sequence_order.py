"""SequenceOrder: the order of a pass whose samples are put together by their lengths.

The plain order of the pass (see `rows_at`) is cut into windows. Within a window, the items are put into units (see
`arrange`). So the items of a window stay at the positions of the window, and a position is found from one window alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tensordb_data.stream.order.arrange import Arranged, best_fit, by_tokens, shuffle_units
from tensordb_data.stream.order.block_shuffle import BlockShuffle, rows_at
from tensordb_data.stream.order.items import Items
from tensordb_data.stream.order.permutation import pass_key
from tensordb_data.stream.spec import StreamSpec
from tensordb_data.stream.tokens import Tokens

_KEPT = 4
"""How many windows are kept."""
_OF_UNITS = 1 << 62
"""Added to the number of a window, so that its key differs from that of a `BlockShuffle`."""


class SequenceOrder:
    """The items of a pass, unit after unit; thread-safe.

    Args:
        items: What the pass goes over.
        tokens: How units are made.
        plain: The plain order of the pass: item numbers int64 [m] for positions int64 [m].
        key: Of the pass. The units of a window are shuffled by it; None if they stay in the order of their lengths.
    """

    def __init__(
        self,
        items: Items,
        tokens: Tokens,
        plain: Callable[[NDArray[np.int64]], NDArray[np.int64]],
        key: int | None,
    ) -> None:
        self.items, self.tokens = items, tokens
        self._plain, self._key = plain, key
        self._lock = threading.Lock()
        self._windows: dict[int, NDArray[np.int64]] = {}
        self._ends: dict[int, NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return len(self.items)

    @property
    def windows(self) -> int:
        """How many windows the pass has."""
        return -(-len(self.items) // self.tokens.samples_together)

    def ends_of(self, window: int) -> NDArray[np.int64]:
        """The positions at which the units of a window end: int64 [units]."""
        with self._lock:
            found = self._ends.get(window)
        if found is None:
            self._arranged(window)
            found = self._ends[window]
        return found

    def take(self, positions: NDArray[np.int64]) -> Items:
        """The items at some positions. Positions from the end of the pass on stand for those from 0 on."""
        size = self.tokens.samples_together
        at = positions % len(self.items)
        numbers = np.empty_like(at)
        for window in np.unique(at // size).tolist():
            mine = at // size == window
            numbers[mine] = self._arranged(window)[at[mine] - window * size]
        return self.items.take(numbers)

    def unit_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers of the units of neighbouring positions, from 0 on: int64 [m]."""
        size, n = self.tokens.samples_together, len(self.items)
        at = positions % n
        begins = np.zeros(len(positions), np.bool_)
        for window in np.unique(at // size).tolist():
            ends = self.ends_of(window)
            starts = np.concatenate([np.array([window * size]), ends[:-1]])
            begins |= np.isin(at, starts) & (at // size == window)
        begins[:1] = True
        return np.cumsum(begins) - 1

    def _arranged(self, window: int) -> NDArray[np.int64]:
        """The item numbers of a window, unit after unit."""
        with self._lock:
            found = self._windows.get(window)
        if found is not None:
            return found
        low = window * self.tokens.samples_together
        numbers = self._plain(np.arange(low, min(low + self.tokens.samples_together, len(self.items))))
        order, ends = self._units(self.items.length[numbers], window)
        with self._lock:
            while len(self._windows) >= _KEPT:
                del self._windows[next(iter(self._windows))]
            self._windows[window] = numbers[order]
            self._ends[window] = low + ends
        return numbers[order]

    def _units(self, lengths: NDArray[np.int64], window: int) -> Arranged:
        make = by_tokens if self.tokens.pack is None else best_fit
        arranged = make(lengths, self.tokens.most)
        return arranged if self._key is None else shuffle_units(arranged, pass_key(self._key, _OF_UNITS + window))


def sequence_order(items: Items, spec: StreamSpec, number: int, block_shuffle: tuple[int, int]) -> SequenceOrder:
    """The order of pass `number` over some items.

    Args:
        items: What the pass goes over.
        spec: Of the stream.
        number: Of the pass.
        block_shuffle: How the stream shuffles.
    """
    shuffle = BlockShuffle(*block_shuffle)
    assert spec.tokens is not None

    def plain(positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return rows_at(positions, len(items), number, spec, shuffle, None)

    return SequenceOrder(items, spec.tokens, plain, pass_key(spec.seed, number) if spec.shuffle else None)
