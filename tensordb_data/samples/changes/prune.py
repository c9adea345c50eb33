"""Remove old entries from the log of changes."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import NotFoundError, QueryError
from tensordb_data.samples.changes.entries import write_entry

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse


def prune_changes(warehouse: Warehouse, dataset: str, older_than: dt.timedelta) -> int:
    """See `Data.prune_changes`."""
    if not isinstance(older_than, dt.timedelta) or older_than < dt.timedelta(0):
        raise QueryError(f"older_than is how old entries are, as timedelta(days=90); found {older_than!r:.100}")
    warehouse.index.make("changes")
    milliseconds = older_than // dt.timedelta(milliseconds=1)
    old: dict[str, Any] = {"$expr": {"$lt": ["$at", {"$subtract": ["$$NOW", milliseconds]}]}}
    if not warehouse.index.is_server:  # mongomock has no such variable, and its clock is ours
        old = {"at": {"$lt": dt.datetime.now(dt.timezone.utc).replace(tzinfo=None) - older_than}}

    def prune(session: Any) -> int:
        # This write comes first: of this and another change, one has to wait.
        about = warehouse.index["datasets"].find_one_and_update(
            {"_id": warehouse.datasets.id(dataset)}, {"$currentDate": {"pruned": True}}, session=session
        )
        if about is None:
            raise NotFoundError(f"there is no dataset {dataset!r} in project {warehouse.project!r}")
        of = {"p": warehouse.project, "dataset": dataset, **old}
        last = warehouse.index["changes"].find_one({**of, "k": "delete"}, {"m": 1}, sort=[("m", -1)], session=session)
        count = int(warehouse.index["changes"].delete_many(of, session=session).deleted_count)
        if count:
            write_entry(warehouse, dataset, "prune", number=None, count=0, session=session,
                        update={"$prune": {"entries": count, "older_than": str(older_than)}})  # fmt: skip
        if last is not None and isinstance(last.get("m"), int) and "stamps" in about:
            # No plan of before can be told what was deleted.
            warehouse.index["datasets"].update_one(
                {"_id": about["_id"]}, {"$max": {"stamps.since": last["m"]}}, session=session
            )
        return count

    return warehouse.index.transaction(prune)
