"""Selection: a query bound to a warehouse. Nothing is read until it is asked for."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError

from tensordb_data.errors import ConnectError, QueryError, UnsupportedError
from tensordb_data.query.query import Query

if TYPE_CHECKING:
    pass



@contextlib.contextmanager
def reported(query: Query) -> Iterator[None]:
    """The driver's errors as ours."""
    try:
        yield
    except ConnectionFailure as error:
        raise ConnectError(f"the database went away during {query.brief}: {_line(error)}") from error
    except OperationFailure as error:
        if error.has_error_label("TransientTransactionError") or error.code in (13, 18, 43, 237, 11600, 11602):
            raise
        missing = _NEEDS_AN_INDEX if error.code in _WITHOUT_INDEX else ""
        raise QueryError(f"the server refused {query.brief}: {_line(error)}{missing}") from error
    except PyMongoError:
        raise
    except NotImplementedError as error:
        if isinstance(error, UnsupportedError):
            raise
        raise UnsupportedError(f"mongomock cannot do this: {error}; use a real server") from error
_WITHOUT_INDEX = (27, 291)
_NEEDS_AN_INDEX = (
    "; the index of $text or $near is not there, or was dropped meanwhile: create it on the server, and go on; a stream"
    " goes on from its state"
)


def _line(error: Exception) -> str:
    return str(error).split(", full error", 1)[0].split(", Timeout:", 1)[0]
