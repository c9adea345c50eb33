"""Counts that end in bounded time."""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING

import numpy as np
from pymongo.errors import ExecutionTimeout

from tensordb_data.common.options import is_number
from tensordb_data.errors import QueryError
from tensordb_data.table.walk import Walk, can_walk
from tensordb_data.warehouse.bound_query import reported

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery


class AtLeast(int):
    """A count that was not made to the end: there are so many, or more."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"AtLeast({int(self)})"

    def __str__(self) -> str:
        return f"{int(self)} or more"


def positive(value: object, what: str) -> float:
    """A number above 0.

    Raises:
        QueryError: It is none.
    """
    if not isinstance(value, (np.floating, np.integer)) and not is_number(value):
        raise QueryError(f"{what} is a number above 0; found {value!r:.100}")
    number = float(value)  # type: ignore[arg-type]
    if not 0 < number < math.inf:
        raise QueryError(f"{what} is a number above 0; found {value!r:.100}")
    return number


def count_number(value: object, what: str) -> int:
    """A whole number of at least 1.

    Raises:
        QueryError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 1 <= value < 2**31 - 1:
        raise QueryError(f"{what} is a whole number from 1; found {value!r:.100}")
    return int(value)


def count_within(bound: BoundQuery, at_most: int | None, seconds: float | None) -> int:
    """See `Selection.count`."""
    most = None if at_most is None else count_number(at_most, "count: at_most")
    if seconds is not None:
        bound = bound.within(positive(seconds, "count: seconds"))
    wanted = bound
    if most is not None and (bound.query.limit is None or bound.query.limit > most):
        wanted = bound.replaced(bound.query.replace(limit=most + 1))
    began = time.monotonic()
    with reported(bound.query):
        try:
            found = wanted.count()
        except ExecutionTimeout:
            if seconds is None:
                raise
            left = max(0.0, seconds - (time.monotonic() - began))
            return AtLeast(_counted(bound, most, left + seconds))
    return AtLeast(most) if most is not None and found > most else found


def _counted(bound: BoundQuery, most: int | None, seconds: float) -> int:
    """How many there are at least, as far as a walk gets in some time."""
    if not can_walk(bound):
        return 0
    limit = min(most or 2**31, bound.query.limit or 2**31)
    count = 0
    bare = bound.replaced(bound.query.replace(limit=None))
    walk = Walk(bare, seconds)
    with contextlib.suppress(ExecutionTimeout):
        for part in walk:
            count += int(bare.collection.count_documents(bare.filter(part.filter), **part.time_limit))
            if count >= limit:
                return limit
    return count
