"""Remember millions of digests in a few bytes each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SMALL = 1 << 16


class Seen:
    """A set of digests, of which it keeps 8 bytes each, in sorted arrays.

    Two of ten million digests have the same 8 bytes with a probability of three in a million.
    """

    def __init__(self) -> None:
        self._sorted: list[NDArray[np.uint64]] = []

    def add(self, digests: Sequence[bytes]) -> NDArray[np.bool_]:
        """Add some digests, of 12 bytes or more.

        Returns:
            Which of them were there before, or stand earlier among these: bool [n].
        """
        values = _short(digests)
        found = self._has(values)
        first = np.zeros(len(values), np.bool_)
        first[np.unique(values, return_index=True)[1]] = True
        new = np.sort(values[first & ~found])
        # Arrays are merged while they are of like sizes, so that there are few.
        while self._sorted and len(self._sorted[-1]) <= max(len(new), _SMALL):
            new = np.sort(np.concatenate([self._sorted.pop(), new]), kind="stable")
        self._sorted.append(new)
        return found | ~first

    def has(self, digests: Sequence[bytes]) -> NDArray[np.bool_]:
        """Which of some digests were added: bool [n]."""
        return self._has(_short(digests))

    def _has(self, values: NDArray[np.uint64]) -> NDArray[np.bool_]:
        found = np.zeros(len(values), np.bool_)
        for known in self._sorted:
            if len(known):
                at = np.minimum(np.searchsorted(known, values), len(known) - 1)
                found |= known[at] == values
        return found


def _short(digests: Sequence[bytes]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(digest[4:12] for digest in digests), np.uint64)
