"""Relocator: finds out which samples of a plan still exist, and where their blobs are now.

A pass keeps to its plan while samples are deleted, blobs are moved and old segments are removed. So before a task
reads, the stream asks which of its samples exist, if any were deleted since the plan was made. And when a read fails,
the stream asks where the blobs are now.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from tensordb_data.blobs.segments.references import MALFORMED, REPLACED, earlier
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

    def relocate(self, table: SampleTable, versions: Versions) -> tuple[SampleTable, Mask]:
        """Replace the references of a table by those to where the blobs are now.

        A blob that an update has replaced since is the earlier one still, where its bytes are kept.

        Args:
            table: Samples of a plan.
            versions: The versions of the plan.

        Returns:
            The new table, and which of its samples exist: bool [m].
        """
        names = list(table.refs)
        if not names:
            there = self._ids(table)
            return table, np.fromiter((id_.tobytes() in there for id_ in table.ids), np.bool_, len(table))
        ids = [table.id(row) for row in range(len(table))]
        found = self.warehouse.blobs.reader.references(ids, names)
        alive = np.array([id_ in found for id_ in ids], np.bool_)
        parts, replaced = self._as_of(table, found, versions)
        refs, inline = dict(table.refs), dict(table.inline)
        for name in names:
            present = np.array([bool(parts[id_].get(name)) for id_ in ids], np.bool_)
            lost = alive & ~present & (table.refs[name].length >= 0)
            if lost.any():  # another tool has removed the reference, or written something else there
                lengths = np.where(lost, MALFORMED, refs[name].length)
                lengths[replaced.get(name, [])] = REPLACED
                refs[name] = replace(refs[name], length=lengths)
            rows = np.flatnonzero(present)
            if not len(rows):
                continue
            refs[name], brought = replace_references(refs[name], rows, [parts[ids[row]][name] for row in rows.tolist()])
            if brought.data is not None and any(data is not None for data in brought.data.tolist()):
                inline[name] = brought
            else:
                inline.pop(name, None)
        return replace(table, refs=refs, inline=inline), alive

    def _as_of(
        self, table: SampleTable, found: Mapping[ObjectId, Mapping[str, Any]], versions: Versions
    ) -> tuple[dict[ObjectId, dict[str, Any]], dict[str, list[int]]]:
        """References as they were when a plan was made.

        Returns:
            The references by `_id` and field; and for each field the rows whose blob is gone.
        """
        mutations = [versions.get(name, (0, 0))[1] for name in table.datasets]
        parts: dict[ObjectId, dict[str, Any]] = {}
        old: set[ObjectId] = set()
        for row in range(len(table)):
            id_, mutation = table.id(row), mutations[table.dataset[row]]
            parts[id_] = {}
            for name, part in found.get(id_, {}).items():
                then = parts[id_][name] = earlier(part, mutation)
                if then is not None and then is not part:
                    old.add(then["k"])
        there = {doc["_id"] for doc in self.warehouse.index["segments"].find({"_id": {"$in": list(old)}}, {"_id": 1})}
        replaced: dict[str, list[int]] = {}
        for row in range(len(table)):
            of = parts[table.id(row)]
            for name in [name for name, then in of.items() if then is None or then.get("k") in old - there]:
                replaced.setdefault(name, []).append(row)
                of[name] = None
        return {id_: {n: then for n, then in of.items() if then is not None} for id_, of in parts.items()}, replaced

    def substitutes(self, plan: Plan, count: int) -> Iterator[SampleTable]:
        """Yield the samples of a plan that exist, from its start, at most `count` at a time."""
        for low in range(0, len(plan), _IDS):
            table = plan.table.take(np.arange(low, min(low + _IDS, len(plan))))
            table, alive = self.relocate(table, plan.versions)
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


@dataclass
class FrozenRelocator(Relocator):
    """The same for a frozen set, whose samples are all there, where they were."""

    def has_deletions(self, versions: Versions) -> bool:
        return False

    def relocate(self, table: SampleTable, versions: Versions) -> tuple[SampleTable, Mask]:
        return table, np.ones(len(table), np.bool_)
