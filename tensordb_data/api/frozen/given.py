"""Check that what a user gives is a Selection of samples."""

from __future__ import annotations

from typing import Any

from tensordb_data.api.selection import Selection
from tensordb_data.errors import QueryError
from tensordb_data.query.query import Query


def check_samples(given: object) -> Selection[Any]:
    """A Selection of samples.

    Raises:
        QueryError: It is none.
    """
    if not isinstance(given, Selection) or given.query.collection != "data":
        raise QueryError(
            f"expected a Selection of samples, db.data.find(...) or db.data.frozen(...); found {given!r:.200}"
        )
    return given


def query_of(given: object) -> Query:
    """The query of a Selection of samples, or a query itself.

    Raises:
        QueryError: It is neither.
    """
    if isinstance(given, Query) and given.collection == "data":
        return given
    return check_samples(given).query
