"""The samples whose vectors are nearest to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from tensordb_data.common.html import Html, Shown, paragraph
from tensordb_data.errors import NotFoundError, QueryError, SchemaError
from tensordb_data.samples.sample import Sample, make_samples
from tensordb_data.schema.array import as_array
from tensordb_data.table.bounded import count_number
from tensordb_data.table.draw import documents_of
from tensordb_data.table.neighbours.column import VectorColumn, open_column
from tensordb_data.table.neighbours.metrics import Comparison, check_metric
from tensordb_data.table.neighbours.vectors import LeftOut, Vectors, as_float32
from tensordb_data.table.notebook import entities_html
from tensordb_data.warehouse.record import Record

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery


class Neighbour(Sample):
    """A sample that is near: as any other sample, with a `score`."""

    __slots__ = ("score",)

    score: float
    """How near it is: the higher, the nearer."""

    @classmethod
    def of(cls, sample: Sample, score: float) -> Neighbour:
        """A sample with its score."""
        found = sample.copied(cls)
        found.score = score
        return found

    def __eq__(self, other: object) -> bool:
        return self._doc == other._doc if isinstance(other, Sample) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return Neighbour.of, (self.copied(Sample), self.score)


class Neighbours(Shown, Sequence[Neighbour]):
    """The nearest samples, the nearest one first. Those with the same score are in the order of the Selection."""

    def __init__(self, found: Sequence[Neighbour], left_out: LeftOut) -> None:
        self._found = list(found)
        self.left_out = left_out
        """How many of the selected samples were not compared: `missing`, `zero` and `nan`."""

    @overload
    def __getitem__(self, index: int) -> Neighbour: ...

    @overload
    def __getitem__(self, index: slice) -> list[Neighbour]: ...

    def __getitem__(self, index: int | slice) -> Neighbour | list[Neighbour]:
        return self._found[index]

    def __len__(self) -> int:
        return len(self._found)

    def __repr__(self) -> str:
        return f"<Neighbours: {len(self)} samples, {self.left_out}>"

    def _html(self) -> Html:
        head = paragraph(f"{len(self):,} samples, nearest first; {self.left_out}")
        return Html(head + entities_html(self._found)) if self._found else head


def similar(bound: BoundQuery, to: object, field: str, k: int, metric: str) -> Neighbours:
    """See `Selection.similar`."""
    count, metric = count_number(k, "similar: k"), check_metric(metric, "similar")
    column = open_column(bound, field, "similar")
    vector, own = _target(bound, to, field)
    _check_target(vector, metric)
    if column is None:
        return Neighbours([], LeftOut())
    nearest = _Nearest(Comparison(vector.reshape(-1), metric), count + (own is not None))
    left_out = LeftOut(column.missing)
    for vectors in column.blocks():
        _check_length(vector, vectors, column)
        nearest.add(vectors)
        left_out += vectors.left_out
    scores = {column.id(row): score for row, score in nearest.found() if column.id(row) != own}
    wanted = list(scores)[:count]
    samples = make_samples(bound.warehouse, documents_of(bound, wanted))
    return Neighbours([Neighbour.of(sample, scores[sample.id]) for sample in samples], left_out)


class _Nearest:
    """The nearest vectors of those that were added so far, in the order of the plan."""

    def __init__(self, comparison: Comparison, count: int) -> None:
        self._comparison, self._count = comparison, count
        self._rows, self._keys = np.empty(0, np.int64), np.empty(0)

    def add(self, vectors: Vectors) -> None:
        """Compare some more."""
        low, high = self._comparison.bounds(vectors)
        full = len(self._keys) == self._count
        least = float(self._keys.min()) if full else -np.inf
        if len(low) > self._count:
            at = len(low) - self._count
            least = max(least, float(np.partition(low, at)[at]))
        which = np.flatnonzero(high >= least)
        rows = np.concatenate([self._rows, vectors.rows[which]])
        keys = np.concatenate([self._keys, self._comparison.exact(vectors, which)])
        best = np.lexsort((rows, -self._comparison.scores(keys)))[: self._count]
        self._rows, self._keys = rows[best], keys[best]

    def found(self) -> list[tuple[int, float]]:
        """Rows of the plan and scores, the nearest first."""
        scores: NDArray[np.float64] = self._comparison.scores(self._keys)
        return list(zip(self._rows.tolist(), scores.tolist(), strict=True))


def _target(bound: BoundQuery, to: object, field: str) -> tuple[NDArray[np.float32], ObjectId | None]:
    """The vector to compare with, and of which sample it is."""
    if isinstance(to, Sample):
        sample: Sample = to if field in to else _sample(bound, to.id)
    elif isinstance(to, (ObjectId, str)):
        sample = _sample(bound, to)
    elif to is None or isinstance(to, (Record, Mapping, bytes)):
        raise QueryError(f"similar: to is a vector, a sample, or the _id of one; found a {type(to).__name__}")
    else:
        try:
            found = np.asarray(to) if isinstance(to, (list, tuple)) else as_array(to)
        except (ValueError, TypeError, OverflowError, SchemaError) as error:
            raise QueryError(f"similar: to is a vector, a sample, or the _id of one; {error}") from None
        return as_float32(found, "similar: to"), None
    if field not in sample:
        raise QueryError(f"similar: to: sample {sample.id} of dataset {sample.dataset!r} has no field {field!r}")
    return as_float32(sample[field], f"similar: to: sample {sample.id}, field {field!r}"), sample.id


def _sample(bound: BoundQuery, id: object) -> Sample:
    if isinstance(id, str) and not (len(id) == 24 and ObjectId.is_valid(id)):
        raise QueryError(f"similar: to: expected the _id of a sample, 24 hexadecimal digits, found {id!r:.60}")
    wanted = ObjectId(id)  # type: ignore[arg-type]
    whole = bound.replaced(bound.query.replace(fields=None))
    docs = documents_of(whole, [wanted])
    if not docs:
        raise NotFoundError(f"similar: to: there is no sample {wanted} in project {bound.warehouse.project!r}")
    return make_samples(bound.warehouse, docs)[0]


def _check_target(vector: NDArray[np.float32], metric: str) -> None:
    if not vector.size:
        raise QueryError("similar: to: expected a vector, found no numbers")
    if not np.isfinite(vector).all():
        raise QueryError("similar: to: expected finite numbers that float32 holds, found NaN or infinity")
    if metric == "cosine" and not vector.any():
        raise QueryError('similar: to: a vector of zeros has no direction; metric="l2" compares distances')


def _check_length(vector: NDArray[np.float32], vectors: Vectors, column: VectorColumn) -> None:
    width = vectors.matrix.shape[1]
    if vector.size != width:
        raise QueryError(f"similar: to: expected {width} numbers, as field {column.field!r} has, found {vector.size}")
