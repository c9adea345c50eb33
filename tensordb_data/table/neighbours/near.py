"""Pairs of samples of two Selections whose vectors have nearly the same direction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from tensordb_data.errors import QueryError
from tensordb_data.table.neighbours.column import VectorColumn, open_column
from tensordb_data.table.neighbours.pairs import MOST_PAIRS, Float64s, Pair, Pairs, compare, least_cosine, listed
from tensordb_data.table.neighbours.vectors import LeftOut, Vectors

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery

NAMED = 1_000
"""Samples that were not compared and that are named, at most, of each Selection."""
_WHAT = "overlap: embedding"

Bytes = NDArray[np.uint8]


class NearPairs:
    """Pairs of a sample of one Selection and a different one of another, the highest score first.

    `len()` is how many there are.
    """

    def __init__(self, field: str, above: float, ids: Bytes, scores: Float64s, count: int, sides: list[_Side]) -> None:
        self.field = field
        self.above = above
        """The least cosine of a pair."""
        self._ids, self._scores, self._count = ids, scores, count
        self.left_out = sides[0].left_out, sides[1].left_out
        """How many samples of each Selection were not compared: `missing`, `zero` and `nan`."""
        self.not_compared = sides[0].not_compared(), sides[1].not_compared()
        """The ids of those samples, 1,000 of each Selection at most."""

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Pair]:
        """The pairs.

        Raises:
            QueryError: There are more than are kept.
        """
        if self._count > len(self._scores):
            raise QueryError(
                f"overlap: there are {self._count:,} near pairs, and {MOST_PAIRS:,} at most are listed: use a higher"
                " `above`, or narrow a query"
            )
        yield from listed(self._ids, self._scores)

    def __repr__(self) -> str:
        return f"<NearPairs: {len(self):,} of a cosine of {self.above:g} or more by {self.field!r}>"


class _Side:
    """One of the two Selections, and which of its samples were compared."""

    def __init__(self, column: VectorColumn | None) -> None:
        self.column = column
        self.ids: Bytes = np.empty((0, 12), np.uint8) if column is None else column.plan.table.ids
        self.left_out = LeftOut(0 if column is None else column.missing)
        self._compared = np.zeros(len(self.ids), np.bool_)

    def note(self, vectors: Vectors) -> None:
        """Note some that are compared."""
        self.left_out += vectors.left_out
        self._compared[vectors.rows] = True

    def not_compared(self) -> tuple[ObjectId, ...]:
        rows = np.flatnonzero(~self._compared)[:NAMED]
        return tuple(ObjectId(self.ids[row].tobytes()) for row in rows.tolist())


def near_pairs(one: BoundQuery, other: BoundQuery, field: str, above: float) -> NearPairs:
    """The pairs of samples of two queries whose vectors have a cosine of `above` or more. See `Data.overlap`."""
    least = least_cosine(above, "overlap")
    sides = [_Side(open_column(bound, field, _WHAT)) for bound in (one, other)]
    mine, others = sides
    found, twins = Pairs(least, len(mine.ids) + len(others.ids)), _twins(mine.ids, others.ids)
    shift, read = len(mine.ids), False  # a pair has rows of both
    for piece in _pieces(mine.column):
        mine.note(piece)
        for block in _blocks(others.column):
            if not read:
                others.note(block)
            _check_widths(piece, block, field)
            compare(piece, replace(block, rows=block.rows + shift), found, twins)
        read = True
    if not read:
        for block in _blocks(others.column):
            others.note(block)
    first, second, scores = found.sorted()
    ids = (
        np.stack([mine.ids[first], others.ids[second - shift]], axis=1)
        if len(first)
        else np.empty((0, 2, 12), np.uint8)
    )
    return NearPairs(field, least, ids, scores, found.count, sides)


def _pieces(column: VectorColumn | None) -> Iterator[Vectors]:
    return iter(()) if column is None else column.pieces()


def _blocks(column: VectorColumn | None) -> Iterator[Vectors]:
    return iter(()) if column is None else column.blocks()


def _twins(one: Bytes, other: Bytes) -> NDArray[np.int64]:
    """For each row of the first and then of the second, the one of the first that is the same sample; -1 for none."""
    rows = {id.tobytes(): row for row, id in enumerate(one)}
    found = np.full(len(one) + len(other), -1, np.int64)
    found[len(one) :] = np.fromiter((rows.get(id.tobytes(), -1) for id in other), np.int64, len(other))
    return found


def _check_widths(one: Vectors, other: Vectors, field: str) -> None:
    widths = one.matrix.shape[1], other.matrix.shape[1]
    if widths[0] != widths[1]:
        raise QueryError(
            f"{_WHAT}: vectors that are compared have one length; field {field!r} has {widths[0]} numbers in the first"
            f" Selection and {widths[1]} in the second: name a field that one model has made"
        )
