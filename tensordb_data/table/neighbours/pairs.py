"""Compares vectors with others by blocked matrix products, and keeps the pairs that are near."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from tensordb_data.errors import QueryError
from tensordb_data.table.bounded import positive
from tensordb_data.table.neighbours.metrics import as_cosine, rounding
from tensordb_data.table.neighbours.vectors import Vectors

MOST_PAIRS = 1_000_000
"""Pairs that are kept; of more, only their number and their groups are."""
_TILE = 2_048
"""Vectors that are compared with as many others at a time."""
_CHUNK = 8 << 20  # bytes of float64 at a time

Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]


class Pair(NamedTuple):
    """Two samples that are nearly the same."""

    first: ObjectId
    """The `_id` of the one that comes first in the Selection."""
    second: ObjectId
    score: float
    """The cosine of their vectors."""


def listed(ids: NDArray[np.uint8], scores: Float64s) -> Iterator[Pair]:
    """Pairs one by one.

    Args:
        ids: uint8 [n, 2, 12]: the `_id`s of their samples.
        scores: float64 [n].
    """
    for two, score in zip(ids, scores.tolist(), strict=True):
        yield Pair(ObjectId(two[0].tobytes()), ObjectId(two[1].tobytes()), score)


def least_cosine(above: object, what: str) -> float:
    """`above`, if it is the least cosine of what is near.

    Raises:
        QueryError: It is not above 0 and at most 1.
    """
    least = positive(above, f"{what}: above")
    if least > 1:
        raise QueryError(f"{what}: above is a cosine, at most 1; found {above!r:.100}")
    return least


def compare(some: Vectors, others: Vectors | None, found: Pairs, twins: Int64s | None = None) -> None:
    """Compare vectors by tiles.

    Args:
        some: Vectors.
        others: Others; None to compare them with each other.
        found: Takes the pairs.
        twins: int64 [rows]: the row of `some` that is the same sample, which is no pair; -1 for none.
    """
    for low in range(0, len(some), _TILE):
        left = some.take(low, low + _TILE)
        left_units = _units(left)
        right_of = some if others is None else others
        for at in range(low if others is None else 0, len(right_of), _TILE):
            right = right_of.take(at, at + _TILE)
            same = others is None and at == low
            product = left_units @ (left_units if same else _units(right)).T
            if same:
                product[np.tril_indices(len(left))] = -2
            if twins is not None:
                twin = twins[right.rows]
                place = np.minimum(np.searchsorted(left.rows, twin), len(left) - 1)
                is_here = np.flatnonzero(left.rows[place] == twin)
                product[place[is_here], is_here] = -2
            found.add(left, right, product)


def _units(vectors: Vectors) -> NDArray[np.float32]:
    """The vectors with a length of 1."""
    units: NDArray[np.float32] = (vectors.matrix / np.sqrt(vectors.squares)[:, None]).astype(np.float32)
    return units


class Pairs:
    """The pairs that were found, and the groups that they make."""

    def __init__(self, above: float, count: int) -> None:
        self._above = float(np.float32(above))  # as precise as cosines are
        self._parts: list[tuple[Int64s, Int64s, Float64s]] = []
        self._kept = 0
        self.count = 0
        self._parent = np.arange(count)  # for each row, one of its group that comes before it

    def add(self, left: Vectors, right: Vectors, product: NDArray[np.float32]) -> None:
        """Add those pairs of a tile that are near enough.

        Args:
            left: m vectors.
            right: n vectors.
            product: float32 [m, n]: their cosines, about. -2 for what is no pair.
        """
        relative, added = rounding(left.matrix.shape[1])
        wrong = relative + added + 3e-7
        near = product >= np.float32(self._above - wrong)
        if not near.any():
            return
        i, j = np.nonzero(near)
        if self.count > MOST_PAIRS:  # no scores are kept any more
            sure = product[i, j] >= np.float32(self._above + wrong)
            unsure = np.flatnonzero(~sure)
            sure[unsure] = _cosines(left, right, i[unsure], j[unsure]) >= self._above
            i, j, scores = i[sure], j[sure], np.empty(0)
        else:
            scores = _cosines(left, right, i, j)
            near = scores >= self._above
            i, j, scores = i[near], j[near], scores[near]
        first, second = left.rows[i], right.rows[j]
        self.count += len(first)
        self._unite(first, second)
        if self.count > MOST_PAIRS:
            self._parts = []
        else:
            self._parts.append((first, second, scores))

    def sorted(self) -> tuple[Int64s, Int64s, Float64s]:
        """The pairs: rows of the plan, and scores, the highest first."""
        if not self._parts:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
        first, second, scores = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        order = np.lexsort((second, first, -scores))
        return first[order], second[order], scores[order]

    def groups(self) -> Iterator[list[int]]:
        """The rows of each group of two or more, in the order of the plan."""
        roots = self._roots(np.arange(len(self._parent)))
        order = np.argsort(roots, kind="stable")
        bounds = np.flatnonzero(np.diff(roots[order], prepend=-1, append=len(roots)))
        sizes = np.diff(bounds)
        for at, size in zip(bounds[:-1][sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
            yield order[at : at + size].tolist()

    def _roots(self, rows: Int64s) -> Int64s:
        """The first row of the group of each row. The way there is half as long next time."""
        roots = rows
        while not np.array_equal(next_ := self._parent[roots], roots):
            further = self._parent[next_]
            self._parent[roots] = further
            roots = further
        return roots

    def _unite(self, first: Int64s, second: Int64s) -> None:
        """Put the two of each pair into one group."""
        while len(first):
            one, other = self._roots(first), self._roots(second)
            apart = one != other
            first, second = first[apart], second[apart]
            one, other = one[apart], other[apart]
            np.minimum.at(self._parent, np.maximum(one, other), np.minimum(one, other))


def _cosines(left: Vectors, right: Vectors, i: Int64s, j: Int64s) -> Float64s:
    """The cosines of pairs, each by itself."""
    found = np.empty(len(i))
    step = max(1, _CHUNK // (8 * left.matrix.shape[1]))
    for low in range(0, len(i), step):
        a, b = i[low : low + step], j[low : low + step]
        product = (left.matrix[a].astype(np.float64) * right.matrix[b]).sum(axis=1)
        found[low : low + step] = product / np.sqrt(left.squares[a] * right.squares[b])
    return as_cosine(found)
