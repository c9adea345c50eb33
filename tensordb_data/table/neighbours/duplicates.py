"""Pairs of samples whose vectors have nearly the same direction, and the groups that they make."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from tensordb_data.common.html import Html, Shown, paragraph, table
from tensordb_data.errors import QueryError
from tensordb_data.table.neighbours.column import open_column
from tensordb_data.table.neighbours.pairs import MOST_PAIRS, Float64s, Pair, Pairs, compare, least_cosine, listed
from tensordb_data.table.neighbours.vectors import LeftOut

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery

_SHOWN = 20


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
        yield from listed(self._ids, self._scores)

    def __repr__(self) -> str:
        return f"<Duplicates: {len(self):,} pairs in {len(self.groups):,} groups, {self.left_out}>"

    def _html(self) -> Html:
        head = paragraph(f"{len(self):,} pairs in {len(self.groups):,} groups; {self.left_out}")
        rows = [[len(group), ", ".join(map(str, group[:_SHOWN]))] for group in self.groups[:_SHOWN]]
        return Html(head + table(["samples", "_id"], rows)) if rows else head


def duplicates(bound: BoundQuery, field: str, above: float) -> Duplicates:
    """See `Selection.duplicates`."""
    least = least_cosine(above, "duplicates")
    column = open_column(bound, field, "duplicates")
    if column is None:
        return Duplicates(np.empty((0, 2, 12), np.uint8), np.empty(0), 0, [], LeftOut())
    found, left_out = Pairs(least, len(column.plan)), LeftOut(column.missing)
    for piece in column.pieces():
        left_out += piece.left_out
        compare(piece, None, found)
        for block in column.blocks_after(piece):
            compare(piece, block, found)
    first, second, scores = found.sorted()
    ids = column.plan.table.ids
    pairs = np.stack([ids[first], ids[second]], axis=1) if len(first) else np.empty((0, 2, 12), np.uint8)
    groups = [[column.id(row) for row in rows] for rows in found.groups()]
    return Duplicates(pairs, scores, found.count, groups, left_out)
