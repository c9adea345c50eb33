"""Bring a warehouse from format 1, that of version 0.1, to format 2, in one transaction.

Whoever opens it to write does this first. Programs of version 0.1 that open it later find the format in the warehouse's
document, and refuse it. Those that are connected do not look there again. But each of their commits and plans reads the
schema of a dataset, which now has a mark that 0.1 takes for a field of an unknown kind. And each gc of theirs looks at
the leases that have ended, before it removes a segment, and stops at one whose object is in no place that 0.1 knows.
"""

from __future__ import annotations

from typing import Any

from bson import ObjectId
from pymongo.write_concern import WriteConcern

from tensordb_data.mongo.transactions import StaleTransactionGuard
from tensordb_data.schema.schema import MARK, MARKED

STOP = ObjectId("00000000000000000000000f")
"""The `_id` of the lease at which a gc of version 0.1 stops."""

_TO = "of format 2 (written by a newer version: upgrade tensordb-data)"


def upgrade(mongo: Any) -> None:
    """Upgrade the warehouse of a database, if nobody else has done so. A kill leaves it as it was, or upgraded."""
    if type(mongo.client).__module__.startswith("mongomock"):
        return
    with mongo.client.start_session() as session:
        body = StaleTransactionGuard(mongo.client, lambda session: _upgrade(mongo, session))
        session.with_transaction(body, write_concern=WriteConcern("majority"))


def _upgrade(mongo: Any, session: Any) -> None:
    done = mongo["warehouse"].update_one({"_id": "warehouse", "format": 1}, {"$set": {"format": 2}}, session=session)
    if not done.matched_count:
        return
    marked = {"$mergeObjects": ["$schema", {"$literal": MARKED}]}
    mongo["datasets"].update_many(
        {f"schema.{MARK}": {"$exists": False}}, [{"$set": {"schema": marked}}], session=session
    )
    stop = {"state": "ended", "objects": [{"root": _TO, "key": _TO}]}
    mongo["leases"].replace_one({"_id": STOP}, stop, upsert=True, session=session)
