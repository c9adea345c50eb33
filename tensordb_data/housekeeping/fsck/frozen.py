"""Frozen sets: they can be read, and each of their blobs is in a segment that a gc keeps for them."""

from __future__ import annotations

import numpy as np

from tensordb_data.errors import CorruptBlobError, StorageError
from tensordb_data.frozen.frozen_set import FrozenSet, label_of, of_doc
from tensordb_data.housekeeping.fsck.data import DataCheck
from tensordb_data.housekeeping.fsck.walk import Doc, Walk


class FrozenCheck:
    """Of frozen sets.

    Args:
        walk: The walk.
        data: The check of the segments, which comes before.
    """

    def __init__(self, walk: Walk, data: DataCheck) -> None:
        self._walk, self._data = walk, data

    def sets(self) -> None:
        """Every set can be read, has as many samples as its document says, and its blobs are where it says."""
        for doc in self._walk.sound("frozen", {}):
            with self._walk.document("frozen", doc):
                self._set(doc)

    def _set(self, doc: Doc) -> None:
        where = f"{label_of(doc)} of project {doc['_tdb']['p']!r}"
        try:
            found = of_doc(self._walk.warehouse.in_project(doc["_tdb"]["p"]), doc)  # type: ignore[arg-type]
            self._blobs(found, where)
        except StorageError as error:
            if self._walk.mongo["frozen"].find_one({"_id": doc["_id"]}, {"_id": 1}):
                kind = "damaged object" if isinstance(error, CorruptBlobError) else "missing object"
                self._walk.report.find(kind, where, str(error))

    def _blobs(self, found: FrozenSet, where: str) -> None:
        doc = found.doc
        named = self._walk.mongo["frozen_segments"].find({"set": doc["_id"]}, {"k": 1})
        kept = {id for row in named for id in row["k"]}
        count = 0
        for block in found.blocks():
            count += len(block)
            for name, refs in block.refs.items():
                there = refs.length >= 0
                for number in np.unique(refs.segment[there]).tolist():
                    id, rows = refs.segments[number], np.flatnonzero(there & (refs.segment == number))
                    place = f"{where}, field {name!r}"
                    if id not in kept:
                        what = f"segment {id} is not noted as used by it, so that a gc may remove it"
                        self._walk.report.find("dangling reference", place, what)
                        kept.add(id)
                    fault = self._data.place_fault(id, refs.offset[rows], refs.length[rows])
                    if fault is not None:
                        self._walk.report.find(fault[0], place, fault[1])
        if doc.get("count") != count:
            what = f"its document says that it has {doc.get('count')!r:.40} samples, and it has {count:,}"
            self._walk.report.find("damaged document", where, what)
