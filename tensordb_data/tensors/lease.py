"""Lease: while it is held, nothing that a save relies on is collected.

A save looks which tensors are stored, writes the others, and commits a document that refers to all of them. A tensor
that dies after the look must stay until that document is there. So a save takes a lease before the look, and the
garbage collector removes nothing that died after the beginning of a lease that is still held. Every change of the index
that relies on the lease renews it in the same transaction: one that was ended in the meantime, since its holder was
taken for dead, makes that transaction fail. All times are the server's.

The lease names the objects of the save before they are written. Those that no tensor names when it has ended are
removed.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from types import TracebackType
from typing import TYPE_CHECKING, Any

from bson import ObjectId
from pymongo import ReturnDocument
from pymongo.errors import PyMongoError

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

    from tensordb_data.warehouse.context import Warehouse

SECONDS = 1800.0
"""How long a holder may be silent: the time to write one object, amply."""


class LeaseLost(Exception):
    """The lease ran out and was ended by a garbage collector: what it was to protect may be gone."""


class Lease:
    """A lease of one save; a context manager. On mongomock, where nothing is collected, it does nothing."""

    def __init__(self, warehouse: Warehouse, id: ObjectId) -> None:
        self._warehouse, self.id = warehouse, id
        self.began = dt.datetime.now(dt.timezone.utc)
        self._objects: list[dict[str, Any]] = []
        self.clean = True
        """Whether every object that was written is named by tensors."""

    def __enter__(self) -> Lease:
        if self._warehouse.index.is_server:
            begins = {"state": "held", "began": "$$NOW", "until": _until()}
            lease = self._leases.find_one_and_update(
                {"_id": self.id}, [{"$set": begins}], upsert=True, return_document=ReturnDocument.AFTER
            )
            self.began = lease["began"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._warehouse.index.is_server:
            return
        with contextlib.suppress(PyMongoError):  # then it runs out by itself
            if self.clean:
                self._leases.delete_one({"_id": self.id})
            else:  # there again, should it have been ended while an object was still being written
                ended = {"state": "ended", "objects": self._objects}
                self._leases.update_one({"_id": self.id}, {"$set": ended}, upsert=True)

    def announce(self, root: int, key: str) -> None:
        """Names an object before it is written.

        Raises:
            LeaseLost: See there.
        """
        self.clean = False
        self._objects.append({"root": root, "key": key})
        self.hold(None, {"objects": self._objects})

    def hold(self, session: ClientSession | None, changes: dict[str, Any] | None = None) -> None:
        """Renews the lease; in a transaction, makes it fail if the lease is ended at the same time.

        Raises:
            LeaseLost: See there.
        """
        if not self._warehouse.index.is_server:
            return
        update = [{"$set": {"until": _until(), **(changes or {})}}]
        if not self._leases.update_one({"_id": self.id, "state": "held"}, update, session=session).matched_count:
            raise LeaseLost

    @property
    def _leases(self) -> Any:
        return self._warehouse.index["leases"]


def _until() -> dict[str, Any]:
    return {"$add": ["$$NOW", int(SECONDS * 1000)]}
