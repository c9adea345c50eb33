"""What is made again, and what is an error at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pymongo.errors import AutoReconnect, CursorNotFound, OperationFailure, PyMongoError

from tensordb_data.mongo.retry import retry_while_unavailable, within

AWAY = [AutoReconnect("connection closed"), OperationFailure("not primary", 10107)]
ENDED = [OperationFailure("operation was interrupted", 11601), CursorNotFound("cursor id 7 not found", 43)]


def failing_once(error: PyMongoError) -> Callable[[], str]:
    errors = [error]

    def call() -> str:
        if errors:
            raise errors.pop()
        return "read"

    return call


@pytest.mark.parametrize("error", AWAY + ENDED, ids=str)
def test_a_read_is_made_again(error: PyMongoError) -> None:
    assert retry_while_unavailable(failing_once(error), reads=True) == "read"


def test_a_write_that_somebody_has_ended_is_not_made_again() -> None:
    """Whoever ended it by hand does not want to see it again."""
    with pytest.raises(OperationFailure, match="interrupted"):
        retry_while_unavailable(failing_once(ENDED[0]))


@pytest.mark.parametrize("reads", [False, True])
def test_a_call_that_is_wrong_is_made_once(reads: bool) -> None:
    with pytest.raises(OperationFailure, match="unknown operator"):
        retry_while_unavailable(failing_once(OperationFailure("unknown operator", 2)), reads=reads)


def test_who_has_no_time_is_told_at_once() -> None:
    calls = []

    def call() -> None:
        calls.append(1)
        raise AutoReconnect("connection closed")

    with within(60.0), pytest.raises(AutoReconnect):
        retry_while_unavailable(call)
    assert len(calls) == 1
