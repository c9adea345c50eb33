"""The lease of a save or a backup: while it is held, a gc removes nothing that its holder relies on.

A save finds out which tensors are stored, writes the others, and commits a document that refers to all of them. A
tensor that is marked as dying in between must stay until that document exists. So a save takes a lease first, and a gc
removes nothing that was marked after the oldest lease began. Each transaction of the save renews the lease. If a gc has
taken the save for dead and has ended its lease, this transaction fails. All times are the server's.

The lease names the objects of the save before they are written. When the lease has ended, a gc removes those objects
that no tensor names.

A backup relies on all that the index names. While a backup holds a lease, no gc removes anything that it has not begun
to remove before.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from bson import ObjectId
from pymongo import ReturnDocument
from pymongo.errors import PyMongoError

from tensordb_data.mongo.heartbeat import BEATS, Heartbeat, beating

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

    from tensordb_data.warehouse.context import Warehouse

SECONDS = 1800.0
"""For how long a save may be silent: more than enough to write one object."""


class LeaseLost(Exception):
    """The lease ran out, and a gc has ended it: the tensors that it protected may be gone."""


class Lease:
    """A lease of one save or backup; a context manager. On mongomock, where nothing is collected, it does nothing.

    Args:
        warehouse: The warehouse.
        id: The `_id` of its document.
        backup: Whether the holder relies on all that the index names.
        seconds: For how long the holder may be silent.
    """

    def __init__(self, warehouse: Warehouse, id: ObjectId, *, backup: bool = False, seconds: float = SECONDS) -> None:
        self._warehouse, self.id, self._backup, self._seconds = warehouse, id, backup, seconds
        self.began = dt.datetime.now(dt.timezone.utc)
        self._objects: list[dict[str, Any]] = []
        self.clean = True
        """Whether tensors name every object that was written."""

    def __enter__(self) -> Lease:
        if self._warehouse.index.is_server:
            begins: dict[str, Any] = {"state": "held", "began": "$$NOW", "until": self._until()}
            if self._backup:
                begins["backup"] = True
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
        with contextlib.suppress(PyMongoError):  # then the lease runs out by itself
            if self.clean:
                self._leases.delete_one({"_id": self.id})
            else:  # upsert: a gc may have ended and removed it while an object was still being written
                ended = {"state": "ended", "objects": self._objects}
                self._leases.update_one({"_id": self.id}, {"$set": ended}, upsert=True)

    def announce(self, root: int, key: str) -> None:
        """Name an object in the lease, before the object is written.

        Raises:
            LeaseLost: The lease was ended.
        """
        self.clean = False
        self._objects.append({"root": root, "key": key})
        self.hold(None, {"objects": self._objects})

    def hold(self, session: ClientSession | None, changes: dict[str, Any] | None = None) -> None:
        """Renew the lease. In a transaction this conflicts with a gc that ends the lease at the same time.

        Raises:
            LeaseLost: The lease was ended.
        """
        if not self._warehouse.index.is_server:
            return
        update = [{"$set": {"until": self._until(), **(changes or {})}}]
        if not self._leases.update_one({"_id": self.id, "state": "held"}, update, session=session).matched_count:
            raise LeaseLost

    def kept_alive(self, every: float | None = None) -> AbstractContextManager[None]:
        """Renew the lease from a thread until the block ends. If it is lost, the next `hold` of its owner fails.

        Args:
            every: Seconds between two renewals; None for a third of those for which the holder may be silent.
        """
        return beating(Heartbeat(lambda: self.hold(None), every or self._seconds / BEATS, LeaseLost))

    def _until(self) -> dict[str, Any]:
        return {"$add": ["$$NOW", int(self._seconds * 1000)]}

    @property
    def _leases(self) -> Any:
        return self._warehouse.index["leases"]


def is_backed_up(warehouse: Warehouse) -> bool:
    """Whether a backup holds a lease, so that nothing may be removed."""
    return warehouse.index["leases"].find_one({"state": "held", "backup": True}, {"_id": 1}) is not None
