"""FeedbackTable: what a run has found out about the samples of a Selection, as columns."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from tensordb_data.common.chunks import batched
from tensordb_data.common.html import Html, Shown, pairs
from tensordb_data.errors import MissingExtraError, QueryError
from tensordb_data.feedback.moments import Moments
from tensordb_data.feedback.reading import read_feedback, rows_of
from tensordb_data.feedback.value import Feedback, How
from tensordb_data.mongo.retry import retry_while_unavailable
from tensordb_data.warehouse.bound_query import reported

if TYPE_CHECKING:
    import pandas

    from tensordb_data.warehouse.bound_query import BoundQuery

_READ = 10_000


class FeedbackTable(Shown):
    """What a run has told of n samples, in the order of their Selection, as it was when it was read."""

    def __init__(self, feedback: Feedback, raw_ids: NDArray[np.uint8], moments: Moments) -> None:
        rows = rows_of(moments, raw_ids)
        self._feedback, self._ids, self._known = feedback, raw_ids, rows >= 0
        known = moments.take(rows[self._known])
        self.count = np.zeros(len(rows), np.int64)
        """int64 [n]: how many numbers there are of each sample; 0 for one without feedback."""
        self.count[self._known] = known.count
        self.mean = self._spread(known.value("mean"))
        """float64 [n]: NaN for a sample without feedback, here and below."""
        self.variance = self._spread(known.value("variance"))
        """float64 [n]: the mean of the squared differences from the mean."""
        self.last = self._spread(known.value("last"))
        """float64 [n]: the newest number of each sample."""

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> list[ObjectId]:
        """The ids of the samples."""
        return self._at(np.arange(len(self)))

    def highest(self, n: int, how: How = "mean") -> list[ObjectId]:
        """The ids of the `n` samples with the highest values, the highest first. Those without feedback are none."""
        return self._at(self._order(how)[::-1][: _number(n)])

    def lowest(self, n: int, how: How = "mean") -> list[ObjectId]:
        """The ids of the `n` samples with the lowest values, the lowest first. Those without feedback are none."""
        return self._at(self._order(how)[: _number(n)])

    def where(self, mask: NDArray[np.bool_]) -> list[ObjectId]:
        """The ids of the samples for which a mask is true: `table.where(table.mean > 2)`.

        Raises:
            QueryError: It is no mask, or of another length.
        """
        found: Any = np.asarray(mask)
        if found.dtype != np.bool_ or found.shape != (len(self),):
            raise QueryError(
                f"where: expected bools of shape ({len(self)},), such as table.mean > 2; found {found.dtype} of shape"
                f" {found.shape}"
            )
        return self._at(np.flatnonzero(found))

    def to_pandas(self) -> pandas.DataFrame:
        """A DataFrame with the columns `_id`, `count`, `mean`, `variance` and `last`.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingExtraError("this needs pandas: pip install 'tensordb-data[tables]'") from error
        columns = {"count": self.count, "mean": self.mean, "variance": self.variance, "last": self.last}
        return pandas.DataFrame({"_id": self.ids, **columns})

    def __repr__(self) -> str:
        of = f"{self._feedback.name!r} of run {self._feedback.run!r}"
        return f"<FeedbackTable {of}: {int(self._known.sum()):,} of {len(self):,} samples>"

    def _html(self) -> Html:
        values = self.mean[self._known]
        lines: list[tuple[str, Any]] = [
            ("run", self._feedback.run), ("number", self._feedback.name), ("samples", len(self)),
            ("with feedback", len(values)),
        ]  # fmt: skip
        if len(values):
            lines += [("lowest mean", float(values.min())), ("highest mean", float(values.max()))]
        return pairs(lines)

    def _spread(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        column = np.full(len(self._ids), np.nan)
        column[self._known] = values
        return column

    def _order(self, how: How) -> NDArray[np.int64]:
        """The rows of the samples with feedback, the lowest first."""
        values: NDArray[Any] = getattr(self, Feedback(self._feedback.run, self._feedback.name, how).how)
        known = np.flatnonzero(self._known)
        found: NDArray[np.int64] = known[np.argsort(values[known], kind="stable")]
        return found

    def _at(self, rows: NDArray[np.int64]) -> list[ObjectId]:
        return [ObjectId(row.tobytes()) for row in self._ids[rows]]


def feedback_table(bound: BoundQuery, run: str, name: str) -> FeedbackTable:
    """See `Selection.feedback_of`."""
    feedback = Feedback(run, name)
    if bound.query.collection != "data":
        raise QueryError(f"runs tell of samples: db.data.find(...); this is a Selection of {bound.query.collection}")
    moments, _ = read_feedback(bound.warehouse, feedback.run, feedback.name)
    with reported(bound.query):
        ids = retry_while_unavailable(partial(_raw_ids, bound), reads=True)
    return FeedbackTable(feedback, ids, moments)


def _raw_ids(bound: BoundQuery) -> NDArray[np.uint8]:
    parts = [b"".join([doc["_id"].binary for doc in some]) for some in batched(bound.cursor({"_id": 1}), _READ)]
    return np.frombuffer(b"".join(parts), np.uint8).reshape(-1, 12)


def _number(n: Any) -> int:
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise QueryError(f"expected a number of samples, at least 1; found {n!r:.80}")
    return int(n)
