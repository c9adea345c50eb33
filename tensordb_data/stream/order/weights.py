"""Weights: the chances of samples that are drawn with replacement."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensordb_data.errors import QueryError, SampleError
from tensordb_data.feedback.moments import Moments
from tensordb_data.feedback.reading import rows_of
from tensordb_data.feedback.value import Feedback
from tensordb_data.stream.plan.sample_table import SampleTable

FieldWeights = str | Callable[[Mapping[str, Any]], float]
"""Weights that are made of the fields of a sample."""


def cumulative_weights(table: SampleTable, weights: FieldWeights, named: Collection[str] = ()) -> NDArray[np.float64]:
    """Running sums of the weights of the samples in `table`, which has the fields that the weights are made of.

    A function gets the fields that all of the samples have, and those that are `named`, which may be None.

    Raises:
        SampleError: a weight is missing, negative, not finite or no number; names the sample.
        QueryError: all weights are 0.
    """
    values = _values(table, weights, named)
    try:
        column = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        column = np.full(len(values), np.nan)
    if not np.isfinite(column).all() or any(issubclass(kind, (str, bytes)) for kind in set(map(type, values))):
        column = np.array([_number(value) for value in values])  # NumPy would read numbers in texts
    wrong = np.flatnonzero(~(np.isfinite(column) & (column >= 0)))
    if wrong.size:
        row = int(wrong[0])
        raise SampleError(f"{table.name(row)}: a weight must be a number of at least 0. Found: {values[row]!r}")
    sums = np.cumsum(column)
    if not sums[-1] > 0:
        raise QueryError(f"all {len(table)} samples have the weight 0; at least one must have more")
    return sums


def cumulative_feedback(table: SampleTable, feedback: Feedback, moments: Moments) -> NDArray[np.float64]:
    """Running sums of the weights of the samples in `table`, which are what a run has found out about them.

    Args:
        table: n samples, at least one.
        feedback: Which value of a sample.
        moments: What is known of samples.

    Returns:
        float64 [n]. A sample of which nothing is known has the mean of the others, or `feedback.missing`.

    Raises:
        SampleError: A weight is negative; names the sample and the run.
        QueryError: All weights are 0, or their sum is not finite.
    """
    what = f"feedback {feedback.name!r} ({feedback.how}) of run {feedback.run!r}"
    rows = rows_of(moments, table.ids)
    known = rows >= 0
    column = np.ones(len(table))
    column[known] = moments.value(feedback.how)[rows[known]]
    if feedback.missing is not None:
        column[~known] = feedback.missing
    elif known.any():
        column[~known] = column[known].mean()
    wrong = np.flatnonzero(~(column >= 0))
    if wrong.size:
        row = int(wrong[0])
        found = "the sample has none, and missing=" if not known[row] else ""
        raise SampleError(
            f"{table.name(row)}: a weight must be a number of at least 0. Found: {found}{column[row]:g}, of {what};"
            " give numbers that are not negative, such as losses or their squares"
        )
    with np.errstate(over="ignore"):
        sums = np.cumsum(column)
    if not 0 < sums[-1] < np.inf:
        found = "0" if sums[-1] == 0 else "so large that their sum is not finite"
        raise QueryError(
            f"{what}: the weights of all {len(table)} samples are {found}; give numbers of which some are more than 0,"
            " or missing= for the samples without any"
        )
    return sums


def _values(table: SampleTable, weights: FieldWeights, named: Collection[str]) -> list[object]:
    if isinstance(weights, str):
        values: list[object] = table.values[weights].tolist()
        return values
    columns = {name: column.tolist() for name, column in table.values.items()}
    lacking: dict[str, int] = {}
    for name, column in columns.items():
        if name not in named and not table.layout.is_required(name) and None in column:
            lacking[name] = column.index(None)
    given = {name: column for name, column in columns.items() if name not in lacking}
    samples = zip(*given.values(), strict=True) if given else [()] * len(table)
    found: list[object] = []
    for row, sample in enumerate(samples):
        try:
            found.append(weights(dict(zip(given, sample, strict=True))))
        except Exception as error:
            if isinstance(error, KeyError) and error.args and error.args[0] in lacking:
                name = error.args[0]
                raise SampleError(
                    f"{table.name(lacking[name])} has no {name!r}, for which the weights function asks: narrow the"
                    f" query with {{{name!r}: {{'$exists': True}}}}, or name it in fields= to get None"
                ) from error
            cause = f"{type(error).__name__}: {error}"
            raise SampleError(f"{table.name(row)}: the weights function raised {cause}") from error
    return found


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float, np.generic)) else float("nan")
