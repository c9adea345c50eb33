"""Repeat a call while the server is unavailable: away, restarting, or electing a primary."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pymongo
from pymongo.errors import PyMongoError

from tensordb_data.common.patience import impatient, is_impatient
from tensordb_data.common.telemetry.measures import add
from tensordb_data.errors import ConnectError
from tensordb_data.mongo.errors import first_line, is_cursor_lost, is_transient

T = TypeVar("T")

_WAIT = (0.05, 2.0)  # seconds between attempts: first, most


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Let all that is asked of the server in this block take no longer than this, and repeat none of it.

    What takes longer raises an error of the driver whose `timeout` is true, or an error that was made of it.
    """
    with impatient(), pymongo.timeout(seconds):
        yield


def retry_while_unavailable(call: Callable[[], T], seconds: float = 60.0, *, reads: bool = False) -> T:
    """Make a call, and repeat it while the server is unavailable.

    Args:
        call: The call. It may run several times, even after a run whose answer was lost.
        seconds: How long the server may be unavailable, counted from the first failure.
        reads: Whether the call only reads. Then it is also repeated if the server has ended its cursor or its session.

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
            if is_impatient() or not (is_transient(error) or (reads and is_cursor_lost(error))):
                raise
            now = time.monotonic()
            deadline = now + seconds if deadline is None else deadline
            if now >= deadline:
                raise ConnectError(
                    f"the database went away and did not come back in {seconds:g} s: {first_line(error)}"
                ) from error
            add("tensordb.retries")
            time.sleep(min(wait, deadline - now) * random.uniform(0.5, 1.0))
            wait = min(_WAIT[1], wait * 2)


def read_all(cursor: Any) -> list[Any]:
    """The documents of a cursor that nobody has begun to read; from the first one again if the server loses it."""
    return retry_while_unavailable(lambda: list(cursor.clone()), reads=True)
