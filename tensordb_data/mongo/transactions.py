"""End transactions that a killed process left open.

Until its time is up, such a transaction keeps its documents locked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar
from uuid import UUID

import pymongo
from bson import Binary
from pymongo.errors import AutoReconnect, PyMongoError

from tensordb_data.mongo.errors import TRANSACTION_TOO_LONG, first_line, is_transient

T = TypeVar("T")

APPLICATION = "tensordb"
_AGAIN = "TransientTransactionError"
IDLE_SECONDS = 3.0  # a live process does not let a transaction rest for so long; if it does, it runs it again


def end_stale_transactions(client: Any, idle: float = IDLE_SECONDS) -> int:
    """End the transactions of TensorDB that have been idle for so many seconds; returns how many.

    If the process of such a transaction lives after all, `with_transaction` runs the transaction again there.
    """
    try:
        with client.admin.aggregate([{"$currentOp": {"idleSessions": True}}, {"$match": {
            "type": "idleSession",
            "appName": APPLICATION,
            "transaction.timeInactiveMicros": {"$gte": int(idle * 1e6)},
        }}]) as found:  # fmt: skip
            ids = [operation["lsid"]["id"] for operation in found]
        if ids:
            # In binary: a command does not know how the client writes UUIDs.
            client.admin.command({"killSessions": [
                {"id": Binary.from_uuid(id) if isinstance(id, UUID) else id} for id in ids
            ]})  # fmt: skip
    except PyMongoError:  # not allowed, or away: then the server ends them when their time is up
        return 0
    return len(ids)


class StaleTransactionGuard:
    """The body of a transaction, which ends stale transactions if it meets conflicts for longer than `IDLE_SECONDS`.

    It does so once. Otherwise two slow processes could end each other's transactions for ever.

    A read of the body that is not part of the transaction may find the server unavailable. Or the server ends the
    transaction, because it took too long on a busy machine. Nothing is committed then, and the driver is told that it
    may run the body again. If it takes too long twice, it has too much to do: see `is_too_large`.
    """

    def __init__(self, client: Any, body: Callable[[Any], T]) -> None:
        self._client, self._body = client, body
        self._look_at = time.monotonic() + IDLE_SECONDS
        self._ended = False

    def __call__(self, session: Any) -> Any:
        if time.monotonic() > self._look_at:
            self._look_at = float("inf")
            end_stale_transactions(self._client)
        try:
            return self._body(session)
        except PyMongoError as error:
            first = getattr(error, "code", None) == TRANSACTION_TOO_LONG and not self._ended
            self._ended |= first
            if error.has_error_label(_AGAIN) or not (first or is_transient(error)):
                raise
            raise AutoReconnect(first_line(error), {"errorLabels": [_AGAIN]}) from error


def write_past_stale_transactions(client: Any, write: Callable[[], T]) -> T:
    """Do a write. If it takes longer than `IDLE_SECONDS`, end stale transactions and do it again.

    Args:
        client: The client.
        write: Does the write. It does no harm if it runs twice.
    """
    try:
        with pymongo.timeout(IDLE_SECONDS):
            return write()
    except PyMongoError as error:
        if not error.timeout:
            raise
    end_stale_transactions(client)
    return write()
