"""Living: which samples of a plan are still there, and where their blobs are by now.

A pass keeps to its plan while samples are deleted, blobs are moved and old segments go. So before a task reads, a
stream whose datasets have lost samples since the plan was made asks for those of the task; and when a read fails, where
the blobs are now.
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

from tensordb_data.stream.plan.inline import moved
from tensordb_data.stream.plan.plan import Plan
from tensordb_data.stream.plan.sample_table import Block
from tensordb_data.stream.state import Versions
from tensordb_data.stream.stats import Stats

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

log = logging.getLogger("tensordb_data.stream")

_LOOK = 1.0
"""Seconds between two looks at whether anything was deleted."""
_IDS = 10_000

Mask = NDArray[np.bool_]


@dataclass
class Living:
    """What one iteration of a stream knows of deletions; thread-safe."""

    warehouse: Warehouse
    stats: Stats
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _looked: float = float("-inf")
    _deletions: dict[str, int] = field(default_factory=dict)

    def mask(self, block: Block, versions: Versions) -> Mask | None:
        """Which samples of a block of a plan of `versions` are there; None when nothing was deleted since."""
        with self._lock:
            if time.monotonic() - self._looked >= _LOOK:
                self._deletions = self.warehouse.datasets.deletions(sorted(versions))
                self._looked = time.monotonic()
            if not any(self._deletions.get(name, 0) > counters[1] for name, counters in versions.items()):
                return None
        found = self._ids(block)
        return np.fromiter((id_.tobytes() in found for id_ in block.ids), np.bool_, len(block))

    def located(self, block: Block) -> tuple[Block, Mask]:
        """The block with references to where its blobs are now, and which of its samples are there."""
        names = list(block.refs)
        if not names:
            found = self._ids(block)
            return block, np.fromiter((id_.tobytes() in found for id_ in block.ids), np.bool_, len(block))
        ids = [block.id(row) for row in range(len(block))]
        parts = self.warehouse.blobs.reader.references(ids, names)
        alive = np.array([id_ in parts for id_ in ids], np.bool_)
        refs, inline = dict(block.refs), dict(block.inline)
        for name in names:
            rows = np.flatnonzero([bool(parts.get(id_, {}).get(name)) for id_ in ids])
            if not len(rows):
                continue
            refs[name], brought = moved(block.refs[name], rows, [parts[ids[row]][name] for row in rows.tolist()])
            if brought.data is not None and any(data is not None for data in brought.data.tolist()):
                inline[name] = brought
            else:
                inline.pop(name, None)
        return replace(block, refs=refs, inline=inline), alive

    def others(self, plan: Plan, count: int) -> Iterator[Block]:
        """The samples of a plan that are there, from its start, at most `count` at a time."""
        for low in range(0, len(plan), _IDS):
            block = plan.block.take(np.arange(low, min(low + _IDS, len(plan))))
            block, alive = self.located(block)
            rows = np.flatnonzero(alive)
            for first in range(0, len(rows), count):
                yield block.take(rows[first : first + count])

    def missed(self, count: int) -> None:
        """Count samples that a batch lacks since they were deleted."""
        if count and self.stats.lost(count):
            log.warning("samples of this pass were deleted since it began, and are skipped (see stats())")

    def _ids(self, block: Block) -> set[bytes]:
        ids = [ObjectId(id_.tobytes()) for id_ in block.ids]
        found: set[bytes] = set()
        data: Any = self.warehouse.index["data"]
        for low in range(0, len(ids), _IDS):
            wanted = {"_id": {"$in": ids[low : low + _IDS]}, "_tdb.p": self.warehouse.project}
            found.update(doc["_id"].binary for doc in data.find(wanted, {"_id": 1}))
        return found
