"""Pairs of samples whose vectors have nearly the same direction, and the groups that they make."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from tensordb_data.common.html import Html, Shown, paragraph, table
from tensordb_data.errors import QueryError
from tensordb_data.table.bounded import positive
from tensordb_data.table.neighbours.column import open_column
from tensordb_data.table.neighbours.metrics import as_cosine, rounding
from tensordb_data.table.neighbours.vectors import LeftOut, Vectors

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery

MOST_PAIRS = 1_000_000
"""Pairs that are kept; of more, only the groups are."""
_TILE = 2_048
"""Vectors that are compared with as many others at a time."""
_CHUNK = 8 << 20  # bytes of float64 at a time
_SHOWN = 20

Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]


class Pair(NamedTuple):
    """Two samples that are nearly the same."""

    first: ObjectId
    """The `_id` of the one that comes first in the Selection."""
    second: ObjectId
    score: float
    """The cosine of their vectors."""


class Duplicates(Shown):
    """Samples that are nearly the same: as pairs, when it is iterated, and as groups.

    The pairs come with the highest score first, each pair once. `len()` is how many there are.
    """

    def __init__(
        self, ids: NDArray[np.uint8], scores: Float64s, count: int, groups: list[list[ObjectId]], left_out: LeftOut
    ) -> None:
        self._ids, self._scores, self._count = ids, scores, count
        self.groups = groups
        """Lists of ids. Each sample that is in a pair is in one group, together with all that it is paired with.
        They are in the order of the Selection."""
        self.left_out = left_out
        """How many of the selected samples were not compared: `missing`, `zero` and `nan`."""

    @property
    def extra(self) -> list[ObjectId]:
        """The ids of all but the first sample of each group: what may be deleted so that no duplicates are left."""
        return [id for group in self.groups for id in group[1:]]

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Pair]:
        """The pairs.

        Raises:
            QueryError: There are more than are kept.
        """
        if self._count > len(self._scores):
            raise QueryError(
                f"duplicates: there are {self._count:,} pairs, and {MOST_PAIRS:,} at most are listed: use `groups`, or"
                " a higher `above`"
            )
        for ids, score in zip(self._ids, self._scores.tolist(), strict=True):
            yield Pair(ObjectId(ids[0].tobytes()), ObjectId(ids[1].tobytes()), score)

    def __repr__(self) -> str:
        return f"<Duplicates: {len(self):,} pairs in {len(self.groups):,} groups, {self.left_out}>"

    def _html(self) -> Html:
        head = paragraph(f"{len(self):,} pairs in {len(self.groups):,} groups; {self.left_out}")
        rows = [[len(group), ", ".join(map(str, group[:_SHOWN]))] for group in self.groups[:_SHOWN]]
        return Html(head + table(["samples", "_id"], rows)) if rows else head


def duplicates(bound: BoundQuery, field: str, above: float) -> Duplicates:
    """See `Selection.duplicates`."""
    least = positive(above, "duplicates: above")
    if least > 1:
        raise QueryError(f"duplicates: above is a cosine, at most 1; found {above!r:.100}")
    column = open_column(bound, field, "duplicates")
    if column is None:
        return Duplicates(np.empty((0, 2, 12), np.uint8), np.empty(0), 0, [], LeftOut())
    found, left_out = _Pairs(least, len(column.plan)), LeftOut(column.missing)
    for piece in column.pieces():
        left_out += piece.left_out
        _compare(piece, None, found)
        for block in column.blocks_after(piece):
            _compare(piece, block, found)
    first, second, scores = found.sorted()
    ids = column.plan.table.ids
    pairs = np.stack([ids[first], ids[second]], axis=1) if len(first) else np.empty((0, 2, 12), np.uint8)
    groups = [[column.id(row) for row in rows] for rows in found.groups()]
    return Duplicates(pairs, scores, found.count, groups, left_out)


def _compare(some: Vectors, others: Vectors | None, found: _Pairs) -> None:
    """Compare vectors with others, or with each other, by tiles."""
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
            found.add(left, right, product)


def _units(vectors: Vectors) -> NDArray[np.float32]:
    """The vectors with a length of 1."""
    units: NDArray[np.float32] = (vectors.matrix / np.sqrt(vectors.squares)[:, None]).astype(np.float32)
    return units


class _Pairs:
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
