"""Commits in the log of changes: those of one process within a minute are one entry."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.samples.changes.entries import author

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

TOGETHER = 60.0
"""Seconds after its first commit in which an entry takes more of them."""
_RUNS = 1_000
"""Pairs of numbers in an entry, at most."""


@dataclass(frozen=True)
class _Entry:
    """An entry that may take more commits."""

    id: ObjectId
    until: float
    runs: int
    last: int
    by: Mapping[str, Any]


class CommitLog:
    """The commits of this process to one dataset, from one source.

    What is remembered here only says where to look: the entry itself tells whether the numbers follow each other.
    """

    def __init__(self, warehouse: Warehouse, dataset: str, source: str | None) -> None:
        self._warehouse, self._dataset, self._source = warehouse, dataset, source
        self._known: _Entry | None = None

    def write(self, first: int, last: int, session: Any) -> _Entry:
        """Within the transaction of a commit, note its sequence numbers.

        Returns:
            What `done` is called with after the transaction.
        """
        changes, known = self._warehouse.index["changes"], self._known
        count, by = last - first + 1, author(self._warehouse, self._source)
        more: dict[str, Any] = {"$inc": {"n": count}, "$set": {"hi": last}, "$currentDate": {"at": True}}
        if known is not None and time.monotonic() < known.until and by == known.by:
            # With the name: the dataset may have another one by now.
            here = {"_id": known.id, "dataset": self._dataset}
            if known.last == first - 1:
                end = f"r.{2 * known.runs - 1}"
                longer = {**more, "$set": {"hi": last, end: last}}
                # The number in the filter: a transaction of unknown outcome may have written it after all.
                if changes.update_one({**here, end: first - 1}, longer, session=session).matched_count:
                    return _Entry(known.id, known.until, known.runs, last, by)
            if known.runs < _RUNS:
                pushed = {**more, "$push": {"r": {"$each": [first, last]}}}
                exact = {**here, "r": {"$size": 2 * known.runs}}
                if changes.update_one(exact, pushed, session=session).matched_count:
                    return _Entry(known.id, known.until, known.runs + 1, last, by)
        id = ObjectId()
        new = {
            "p": self._warehouse.project, "dataset": self._dataset, "k": "add", "m": None, "n": count,
            "by": by, "lo": first, "hi": last, "r": [first, last],
        }  # fmt: skip
        now = {"$set": new, "$currentDate": {"at": True, "began": True}}
        changes.update_one({"_id": id}, now, upsert=True, session=session)
        return _Entry(id, time.monotonic() + TOGETHER, 1, last, by)

    def done(self, entry: _Entry) -> None:
        """Note that a transaction took place."""
        self._known = entry


def commit_log(warehouse: Warehouse, dataset: str, source: str | None) -> CommitLog:
    """The log of the commits of this process to a dataset, from a source or from none."""
    logs: dict[tuple[str, str | None], CommitLog] = warehouse.memo(CommitLog, dict)
    return logs.setdefault((dataset, source), CommitLog(warehouse, dataset, source))
