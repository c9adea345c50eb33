"""Errors of the MongoDB driver: what their codes mean, and what a message says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ConnectionFailure,
    CursorNotFound,
    OperationFailure,
    PyMongoError,
)

from tensordb_data.errors import ConnectError

UNAUTHORIZED, AUTHENTICATION_FAILED = 13, 18
NO_INDEX = frozenset((27, 291))
"""The index that `$text` or `$near` needs does not exist."""
DUPLICATE_KEY = 11000
TRANSACTION_TOO_LARGE = 388
TRANSACTION_TOO_LONG = 290
_TOO_MUCH = (TRANSACTION_TOO_LARGE, TRANSACTION_TOO_LONG)
TIME_IS_UP = 50
"""The server has ended an operation that took longer than its `maxTimeMS`."""

INTERRUPTED = frozenset((43, 237, 11600, 11602))
"""The server has ended an operation or a cursor, mostly because it shuts down or is no longer primary."""
TRANSIENT = INTERRUPTED | {6, 7, 89, 91, 133, 134, 189, 262, 9001, 10058, 10107, 13435, 13436}
"""The server steps down, shuts down, recovers or cannot be reached, or one of these has interrupted the call."""
HISTORY_LOST = frozenset((280, 286))
"""The oplog does not reach back to the position of a change stream."""
DOCUMENT_REFUSED = frozenset((2, 14, 22, 52, 53, 55, 56, 57, 121, 171, 10334, 17280, 17419, 17420))
"""A document cannot be stored, whenever it is tried: it is malformed, too large, or refused by a validator."""
CURSOR_LOST = frozenset((175, 206, 237, 262, 11600, 11601, 11602))
"""A cursor was interrupted or killed, was out of time, or its collection, index or session is gone."""


def first_line(error: Exception | None) -> str:
    """What an error of the driver says, without the topology and the details that it appends."""
    return "" if error is None else str(error).split(", full error", 1)[0].split(", Timeout", 1)[0]


def is_transient(error: Exception) -> bool:
    """Whether an error says that the server is unavailable for now. Otherwise the call itself is wrong."""
    if isinstance(error, ConnectError):
        error = error.__cause__ if isinstance(error.__cause__, PyMongoError) else error
    if isinstance(error, OperationFailure):
        return error.code in TRANSIENT or error.has_error_label("RetryableWriteError")
    return isinstance(error, (ConnectionFailure, ConnectError))


def is_history_lost(error: Exception) -> bool:
    """Whether an error says that the server no longer knows what has changed since a position."""
    return getattr(error, "code", None) in HISTORY_LOST or getattr(error.__cause__, "code", None) in HISTORY_LOST


def is_cursor_lost(error: Exception) -> bool:
    """Whether an error says that the server has ended the cursor of a read. Whoever reads can begin again."""
    return isinstance(error, (CursorNotFound, AutoReconnect)) or getattr(error, "code", None) in CURSOR_LOST


def write_errors(error: BulkWriteError) -> Sequence[Mapping[str, Any]]:
    """The errors of the single writes of a bulk write."""
    return list((error.details or {}).get("writeErrors", ()))


def are_duplicates(error: BulkWriteError) -> bool:
    """Whether each write that failed has met a document with the same key, and no other error."""
    return all(failure.get("code") == DUPLICATE_KEY for failure in write_errors(error))


def is_too_large(error: OperationFailure) -> bool:
    """Whether a transaction is too large for the cache of the server, or for the time that the server gives it."""
    if isinstance(error, BulkWriteError):
        return any(failure.get("code") in _TOO_MUCH for failure in write_errors(error))
    return error.code in _TOO_MUCH
