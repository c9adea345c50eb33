"""Relocator: finds out which samples of a plan still exist, and where their blobs are now.

A pass keeps to its plan while samples are deleted, blobs are moved and old segments are removed. So before a task
reads, the stream asks which of its samples exist, if any were deleted since the plan was made. And when a read fails,
the stream asks where the blobs are now.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from tensordb_data.blobs.segments.references import MALFORMED
from tensordb_data.stream.plan.index_snapshot import Deletions
from tensordb_data.stream.plan.inline import replace_references
from tensordb_data.stream.plan.plan import Plan
from tensordb_data.stream.plan.sample_table import SampleTable
from tensordb_data.stream.state import Versions
from tensordb_data.stream.stats import Stats

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

log = logging.getLogger("tensordb_data.stream")

_LOOK = 1.0
"""Seconds between two looks at the counters of deletions."""
_IDS = 10_000

Mask = NDArray[np.bool_]


@dataclass
class Relocator:
    """Keeps track of deletions for one iteration of a stream; thread-safe."""

    warehouse: Warehouse
    stats: Stats
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _seen: Deletions = field(default_factory=lambda: Deletions(float("-inf"), {}))

    def note(self, seen: Deletions) -> None:
        """Note which deletions there were at some time, so that nobody asks for them again so soon."""
        with self._lock:
            if seen.at > self._seen.at:
                self._seen = seen

    def has_deletions(self, versions: Versions) -> bool:
        """Whether samples were deleted since a plan of these versions was made."""
        with self._lock:
            now = time.monotonic()
            if now - self._seen.at >= _LOOK:
                self._seen = Deletions(now, self.warehouse.datasets.deletions(sorted(versions)))
            return any(self._seen.last.get(name, 0) > counters[1] for name, counters in versions.items())

    def existing(self, table: SampleTable, versions: Versions) -> Mask | None:
        """Find out which samples of a table exist: bool [m].

        Args:
            table: Samples of a plan.
            versions: The versions of the plan.

        Returns:
            None if nothing was deleted since the plan was made.
        """
        if not self.has_deletions(versions):
            return None
        found = self._ids(table)
        return np.fromiter((id_.tobytes() in found for id_ in table.ids), np.bool_, len(table))

    def relocate(self, table: SampleTable) -> tuple[SampleTable, Mask]:
        """Replace the references of a table by those to where the blobs are now.

        Returns:
            The new table, and which of its samples exist: bool [m].
        """
        names = list(table.refs)
        if not names:
            found = self._ids(table)
            return table, np.fromiter((id_.tobytes() in found for id_ in table.ids), np.bool_, len(table))
        ids = [table.id(row) for row in range(len(table))]
        parts = self.warehouse.blobs.reader.references(ids, names)
        alive = np.array([id_ in parts for id_ in ids], np.bool_)
        refs, inline = dict(table.refs), dict(table.inline)
        for name in names:
            present = np.array([bool(parts.get(id_, {}).get(name)) for id_ in ids], np.bool_)
            lost = alive & ~present & (table.refs[name].length >= 0)
            if lost.any():  # another tool has removed the reference, or written something else there
                refs[name] = replace(refs[name], length=np.where(lost, MALFORMED, refs[name].length))
            rows = np.flatnonzero(present)
            if not len(rows):
                continue
            refs[name], brought = replace_references(refs[name], rows, [parts[ids[row]][name] for row in rows.tolist()])
            if brought.data is not None and any(data is not None for data in brought.data.tolist()):
                inline[name] = brought
            else:
                inline.pop(name, None)
        return replace(table, refs=refs, inline=inline), alive

    def substitutes(self, plan: Plan, count: int) -> Iterator[SampleTable]:
        """Yield the samples of a plan that exist, from its start, at most `count` at a time."""
        for low in range(0, len(plan), _IDS):
            table = plan.table.take(np.arange(low, min(low + _IDS, len(plan))))
            table, alive = self.relocate(table)
            rows = np.flatnonzero(alive)
            for first in range(0, len(rows), count):
                yield table.take(rows[first : first + count])

    def count_deleted(self, count: int) -> None:
        """Count samples that are missing in a batch because they were deleted. The first ones are logged."""
        if count and self.stats.count_deleted(count):
            log.warning("samples of this pass were deleted since it began, and are skipped (see stats())")

    def _ids(self, table: SampleTable) -> set[bytes]:
        ids = [ObjectId(id_.tobytes()) for id_ in table.ids]
        found: set[bytes] = set()
        data: Any = self.warehouse.index["data"]
        for low in range(0, len(ids), _IDS):
            wanted = {"_id": {"$in": ids[low : low + _IDS]}, "_tdb.p": self.warehouse.project}
            found.update(doc["_id"].binary for doc in data.find(wanted, {"_id": 1}))
        return found
