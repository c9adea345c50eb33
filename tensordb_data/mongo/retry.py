"""Repeat a call while the server is unavailable: away, restarting, or electing a primary."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError

from tensordb_data.errors import ConnectError

T = TypeVar("T")

# The server steps down, shuts down or recovers, or one of these has interrupted the call.
_TRANSIENT = frozenset((43, 89, 91, 189, 237, 262, 9001, 10058, 10107, 11600, 11602, 13435, 13436))
_WAIT = (0.05, 2.0)  # seconds between attempts: first, most


def is_transient(error: Exception) -> bool:
    """Whether an error says that the server is unavailable for now. Otherwise the call itself is wrong."""
    if isinstance(error, ConnectError):
        error = error.__cause__ if isinstance(error.__cause__, PyMongoError) else error
    if isinstance(error, OperationFailure):
        return error.code in _TRANSIENT or error.has_error_label("RetryableWriteError")
    return isinstance(error, (ConnectionFailure, ConnectError))


def retry_while_unavailable(call: Callable[[], T], seconds: float = 60.0) -> T:
    """Make a call, and repeat it while the server is unavailable.

    Args:
        call: The call. It may run several times, even after a run whose answer was lost.
        seconds: How long the server may be unavailable, counted from the first failure.

    Returns:
        What `call` returns.

    Raises:
        ConnectError: The server did not come back.
    """
    deadline: float | None = None
    wait = _WAIT[0]
    while True:
        try:
            return call()
        except (PyMongoError, ConnectError) as error:
            if not is_transient(error):
                raise
            now = time.monotonic()
            deadline = now + seconds if deadline is None else deadline
            if now >= deadline:
                line = str(error).split(", Timeout:", 1)[0]
                raise ConnectError(f"the database went away and did not come back in {seconds:g} s: {line}") from error
            time.sleep(min(wait, deadline - now) * random.uniform(0.5, 1.0))
            wait = min(_WAIT[1], wait * 2)
