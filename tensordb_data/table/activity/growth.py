"""How the bytes of datasets came in: those of segments, by the time that each was made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pymongo.errors import PyMongoError

from tensordb_data.errors import ConnectError
from tensordb_data.mongo.retry import within
from tensordb_data.table.activity.values import whole

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_SECONDS = 1.0


def growth(warehouse: Warehouse, bars: int) -> dict[str, list[int]]:
    """Bytes of live segments by dataset, in `bars` equal spans of time from the first segment of the project until now.

    A compaction makes segments anew, so that their bytes count from then on. It is empty where this is not found within
    a second, and on mongomock.
    """
    if not warehouse.index.is_server:
        return {}
    segments = warehouse.index["segments"]
    mine = {"p": warehouse.project, "state": "live", "created": {"$type": "date"}}
    try:
        with within(_SECONDS):
            first = next(segments.aggregate([
                {"$match": mine}, {"$group": {"_id": None, "at": {"$min": "$created"}, "now": {"$max": "$$NOW"}}},
            ]), None)  # fmt: skip
            if first is None:
                return {}
            width = max(1.0, (first["now"] - first["at"]).total_seconds() * 1000 / bars)
            bar: dict[str, Any] = {"$floor": {"$divide": [{"$subtract": ["$created", first["at"]]}, width]}}
            found = list(segments.aggregate([
                {"$match": mine}, {"$group": {"_id": {"d": "$dataset", "bar": bar}, "bytes": {"$sum": "$bytes"}}},
            ]))  # fmt: skip
    except (PyMongoError, ConnectError):
        return {}
    made: dict[str, list[int]] = {}
    for each in found:
        if isinstance(name := each["_id"].get("d"), str):
            made.setdefault(name, [0] * bars)[min(bars - 1, max(0, int(each["_id"]["bar"])))] += whole(each["bytes"])
    return made
