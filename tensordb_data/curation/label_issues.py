"""Labels that are likely wrong, by the probabilities of a model, as cleanlab finds them (confident learning)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from tensordb_data.common.html import Html, Shown, paragraph, table
from tensordb_data.errors import MissingExtraError, QueryError
from tensordb_data.stream.deliver.stream import Stream
from tensordb_data.stream.spec import StreamSpec

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery

_BATCH = 4096
_SHOWN = 20
_SUM = 0.01  # by how much probabilities may differ from 1 together


class LabelIssue(NamedTuple):
    """A sample whose label is likely wrong."""

    id: ObjectId
    label: Any
    """The label that it has."""
    suggested: Any
    """The label with the highest probability."""
    score: float
    """How good its label is, from 0 to 1: the probability that the model gives it."""


class LabelIssues(Sequence[LabelIssue], Shown):
    """Samples whose labels are likely wrong, the worst first."""

    def __init__(self, issues: list[LabelIssue], compared: int, left_out: int) -> None:
        self._issues = issues
        self.compared = compared
        """How many samples were looked at."""
        self.left_out = left_out
        """How many were not: they have no label or no probabilities."""

    @property
    def ids(self) -> list[ObjectId]:
        """Their ids, the worst first."""
        return [issue.id for issue in self._issues]

    def __len__(self) -> int:
        return len(self._issues)

    def __iter__(self) -> Iterator[LabelIssue]:
        return iter(self._issues)

    def __getitem__(self, place: Any) -> Any:
        return self._issues[place]

    def __repr__(self) -> str:
        return f"<LabelIssues: {len(self):,} of {self.compared:,} samples, {self.left_out:,} left out>"

    def _html(self) -> Html:
        rows = [tuple(issue) for issue in self._issues[:_SHOWN]]
        return Html(paragraph(repr(self)) + table(list(LabelIssue._fields), rows))


def label_issues(bound: BoundQuery, probabilities: str, label: str, classes: Sequence[Any] | None) -> LabelIssues:
    """See `Selection.label_issues`."""
    if bound.query.collection != "data":
        raise QueryError(f"only samples have labels: db.data.find(...); this is db.{bound.query.collection}")
    if label == probabilities:
        raise QueryError(f"the label and its probabilities are two fields; found {label!r} for both")
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError as error:
        raise MissingExtraError("label_issues needs cleanlab: pip install 'tensordb-data[curation]'") from error
    total = bound.count()
    ids, labels, chances = _read(bound, probabilities, label)
    if not ids:
        raise QueryError(f"no sample of {bound.query.brief} has both {label!r} and {probabilities!r}")
    names, numbers = _numbers(labels, label, classes, chances.shape[1])
    if len(set(numbers.tolist())) < 2:
        raise QueryError(f"all samples have the label {labels[0]!r}: there is nothing to compare it with")
    wrong = find_label_issues(numbers, chances, return_indices_ranked_by="self_confidence", n_jobs=1)
    scores = get_label_quality_scores(numbers, chances, method="self_confidence")
    best = chances.argmax(axis=1)
    found = [LabelIssue(ids[row], labels[row], names[best[row]], float(scores[row])) for row in wrong.tolist()]
    return LabelIssues(found, len(ids), total - len(ids))


def _read(bound: BoundQuery, probabilities: str, label: str) -> tuple[list[ObjectId], list[Any], NDArray[np.float64]]:
    """The samples that have both fields: ids, labels, and probabilities, float64 [n, k]."""
    has = {"$and": [{probabilities: {"$exists": True}}, {label: {"$ne": None}}]}
    filter = {"$and": [bound.query.filter, has]} if bound.query.filter else has
    if bound.query.limit is not None:
        filter = {"$and": [{"_id": {"$in": [doc["_id"] for doc in bound.cursor({"_id": 1})]}}, has]}
    query = bound.query.replace(filter=filter, fields=None, limit=None)
    spec = StreamSpec(query, _BATCH, ("_id", label, probabilities), passes=1)
    ids: list[ObjectId] = []
    labels: list[Any] = []
    parts: list[NDArray[np.float64]] = []
    with closing(Stream(bound.warehouse, spec)) as stream:
        for batch in stream:
            ids += batch["_id"]
            labels += [value.item() if isinstance(value, np.generic) else value for value in batch[label]]
            parts.append(_matrix(batch["_id"], batch[probabilities], probabilities, parts))
    return ids, labels, np.concatenate(parts) if parts else np.zeros((0, 0))


def _matrix(ids: Any, found: Any, name: str, before: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    rows: Any = found if isinstance(found, np.ndarray) else _stacked(found)
    k = before[0].shape[1] if before else None
    if rows is None or rows.ndim != 2 or rows.dtype.kind != "f" or k not in (None, rows.shape[1]):
        what = "values of different shapes" if rows is None else f"{rows.dtype} of shape {rows.shape[1:]}"
        raise QueryError(
            f"{name!r} must have a probability for each class, floats of shape (k,) in all samples; found {what}"
        )
    matrix: NDArray[np.float64] = rows.astype(np.float64)
    with np.errstate(invalid="ignore"):
        wrong = ~((matrix >= 0).all(axis=1) & (np.abs(matrix.sum(axis=1) - 1) <= _SUM))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise QueryError(
            f"sample {ids[row]}: {name!r} must be probabilities, at least 0 and 1 in all; found a sum of"
            f" {matrix[row].sum():g} and a least one of {matrix[row].min():g}. Of scores, store the softmax"
        )
    return matrix


def _stacked(found: Any) -> Any:
    try:
        return np.stack([np.asarray(row) for row in found])
    except (TypeError, ValueError):
        return None


def _numbers(
    labels: Sequence[Any], name: str, classes: Sequence[Any] | None, k: int
) -> tuple[Sequence[Any], NDArray[np.int64]]:
    """The names of the classes, and the number of the class of each label."""
    if classes is None:
        names: Sequence[Any] = range(k)
        hint = f"give classes=[...], the labels in the order of the probabilities, {k} of them"
    else:
        if isinstance(classes, str) or len(classes) != k or len(set(classes)) != k:
            raise QueryError(
                f"classes= must be {k} different labels, in the order of the probabilities; found {classes!r:.200}"
            )
        names, hint = list(classes), "classes= must have all labels"
    place = {value: number for number, value in enumerate(names)}
    try:
        found = [place.get(value) if not isinstance(value, bool) or classes is not None else None for value in labels]
    except TypeError:
        raise QueryError(f"{name!r} must be a number or a text in each sample, to be a label") from None
    if None in found:
        raise QueryError(f"the label {labels[found.index(None)]!r} in {name!r} is none of {k} classes: {hint}")
    return names, np.array(found, np.int64)
