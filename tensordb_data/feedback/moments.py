"""Moments: count, mean, variance and last value of the numbers of each sample, which can be merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tensordb_data.feedback.value import How

Ids = NDArray[np.bytes_]
"""S12 [n]: the `_id`s of n samples."""


@dataclass(frozen=True)
class Moments:
    """What is known of n samples. Each comes once, and they are in the order of their ids."""

    ids: Ids
    count: NDArray[np.int64]
    """int64 [n]: how many numbers there were of each sample, at least 1."""
    mean: NDArray[np.float64]
    """float64 [n]."""
    squares: NDArray[np.float64]
    """float64 [n]: the sums of the squared differences from the mean."""
    last: NDArray[np.float64]
    """float64 [n]: the newest number of each sample."""

    def __len__(self) -> int:
        return len(self.ids)

    def value(self, how: How) -> NDArray[np.float64]:
        """float64 [n]: one value of each sample."""
        if how == "variance":
            return self.squares / self.count
        if how == "count":
            return self.count.astype(np.float64)
        return self.mean if how == "mean" else self.last

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> Moments:
        """The samples at some rows."""
        columns = (self.ids, self.count, self.mean, self.squares, self.last)
        return Moments(*(column[rows] for column in columns))  # type: ignore[arg-type]


def no_moments() -> Moments:
    """Those of no sample."""
    return moments_of(np.zeros(0, "S12"), np.zeros(0))


def moments_of(ids: Ids, numbers: NDArray[np.float64]) -> Moments:
    """The moments of finite numbers of some samples, which may come several times, in the order of time."""
    return _grouped(ids, np.ones(len(ids), np.int64), numbers, np.zeros(len(ids)), numbers)


def merged(parts: Sequence[Moments]) -> Moments:
    """The moments of the numbers of all parts together, of which the later ones come later.

    The sums of squares are merged by the counts (Chan, Golub and LeVeque, 1979), so that nothing is lost where the
    numbers are large and differ little.
    """
    if not parts:
        return no_moments()
    if len(parts) == 1:
        return parts[0]
    return _grouped(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.count for part in parts]),
        np.concatenate([part.mean for part in parts]),
        np.concatenate([part.squares for part in parts]),
        np.concatenate([part.last for part in parts]),
    )


def _grouped(
    ids: Ids,
    count: NDArray[np.int64],
    mean: NDArray[np.float64],
    squares: NDArray[np.float64],
    last: NDArray[np.float64],
) -> Moments:
    order = np.argsort(ids, kind="stable")
    ids, count, mean, squares = ids[order], count[order], mean[order], squares[order]
    if not len(ids):
        return Moments(ids, count, mean, squares, last)
    words = ids.view("<u4").reshape(-1, 3)  # to compare texts would keep other threads of Python from running
    first = np.flatnonzero(np.concatenate([[True], (words[1:] != words[:-1]).any(axis=1)]))
    sizes = np.diff(np.append(first, len(ids)))
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.add.reduceat(count, first)
        # Of the differences from the first mean, so that equal numbers have exactly their mean, and no variance.
        base = mean[first]
        away = mean - np.repeat(base, sizes)
        shift = np.add.reduceat(count * away, first) / total
        squares = np.add.reduceat(squares + count * (away - np.repeat(shift, sizes)) ** 2, first)
        return Moments(ids[first], total, base + shift, squares, last[order][first + sizes - 1])
