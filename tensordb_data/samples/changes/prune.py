"""Remove old entries from the log of changes."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.errors import NotFoundError, QueryError
from tensordb_data.samples.changes.entries import author
from tensordb_data.samples.commit import back_off

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_CHUNK = 1_000


def prune_changes(warehouse: Warehouse, dataset: str, older_than: dt.timedelta) -> int:
    """See `Data.prune_changes`."""
    if not isinstance(older_than, dt.timedelta) or older_than < dt.timedelta(0):
        raise QueryError(f"older_than is how old entries are, as timedelta(days=90); found {older_than!r:.100}")
    warehouse.index.make("changes")
    milliseconds = older_than // dt.timedelta(milliseconds=1)
    old: dict[str, Any] = {"$expr": {"$lt": ["$at", {"$subtract": ["$$NOW", milliseconds]}]}}
    if not warehouse.index.is_server:  # mongomock has no such variable, and its clock is ours
        old = {"at": {"$lt": dt.datetime.now(dt.timezone.utc).replace(tzinfo=None) - older_than}}
    note, total = ObjectId(), 0
    while True:
        count = warehouse.index.transaction(_Body(warehouse, dataset, old, note))
        total += count
        if count < _CHUNK:
            return total


class _Body:
    """A transaction that removes some entries, and notes how many. It may run several times."""

    def __init__(self, warehouse: Warehouse, dataset: str, old: dict[str, Any], note: ObjectId) -> None:
        self._warehouse, self._dataset, self._old, self._note = warehouse, dataset, old, note
        self._attempts = 0

    def __call__(self, session: Any) -> int:
        back_off(self._attempts)
        self._attempts += 1
        index, id = self._warehouse.index, self._warehouse.datasets.id(self._dataset)
        # This write comes first: of this and another change, one has to wait.
        now = {"$currentDate": {"pruned": True}}
        about = index["datasets"].find_one_and_update({"_id": id}, now, session=session)
        if about is None:
            raise NotFoundError(f"there is no dataset {self._dataset!r} in project {self._warehouse.project!r}")
        here = {"p": self._warehouse.project, "dataset": self._dataset}
        old = {**here, **self._old, "k": {"$ne": "prune"}}
        found = list(index["changes"].find(old, {"k": 1, "m": 1}, session=session).limit(_CHUNK))
        if not found:
            return 0
        index["changes"].delete_many({"_id": {"$in": [doc["_id"] for doc in found]}}, session=session)
        entry = {**here, "k": "prune", "m": None, "by": author(self._warehouse)}
        noted = {"$set": entry, "$inc": {"n": len(found)}, "$currentDate": {"at": True}}
        index["changes"].update_one({"_id": self._note}, noted, upsert=True, session=session)
        deleted = [doc["m"] for doc in found if doc.get("k") == "delete" and isinstance(doc.get("m"), int)]
        if deleted and "stamps" in about:
            # A plan of before can no longer be told what was deleted.
            index["datasets"].update_one({"_id": id}, {"$max": {"stamps.since": max(deleted)}}, session=session)
        return len(found)
