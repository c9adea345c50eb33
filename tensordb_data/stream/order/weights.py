"""Weights: the chances of samples that are drawn with replacement."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tensordb_data.errors import QueryError, SampleError
from tensordb_data.stream.plan.sample_table import SampleTable
from tensordb_data.stream.spec import Weights


def cumulative_weights(table: SampleTable, weights: Weights) -> NDArray[np.float64]:
    """Running sums of the weights of the samples in `table`, which has the fields that the weights are made of.

    Raises:
        SampleError: a weight is missing, negative, not finite or no number; names the sample.
        QueryError: all weights are 0.
    """
    values = _values(table, weights)
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


def _values(table: SampleTable, weights: Weights) -> list[object]:
    if isinstance(weights, str):
        values: list[object] = table.values[weights].tolist()
        return values
    columns = [column.tolist() for column in table.values.values()]
    samples = zip(*columns, strict=True) if columns else [()] * len(table)
    found: list[object] = []
    for row, sample in enumerate(samples):
        try:
            found.append(weights(dict(zip(table.values, sample, strict=True))))
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            raise SampleError(f"{table.name(row)}: the weights function raised {cause}") from error
    return found


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float, np.generic)) else float("nan")
