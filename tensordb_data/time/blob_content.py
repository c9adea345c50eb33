"""Tell whether blobs at different places are the same: by the checksums that their segments have of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from tensordb_data.blobs.segments.format import SegmentIndex, SegmentPlace
from tensordb_data.blobs.segments.inline import INLINE
from tensordb_data.blobs.segments.read import read_segment_index
from tensordb_data.blobs.segments.references import BlobRefs
from tensordb_data.errors import StorageError

if TYPE_CHECKING:
    from tensordb_data.stream.plan.sample_table import SampleTable
    from tensordb_data.warehouse.context import Warehouse

Rows = NDArray[np.int64]
_KEPT = 256


class BlobContents:
    """The checksums of blobs, read from their segments once.

    Args:
        warehouse: The warehouse.
    """

    def __init__(self, warehouse: Warehouse) -> None:
        self._warehouse = warehouse
        self._known: dict[ObjectId, SegmentIndex] = {}

    def differ(self, one: BlobRefs, other: BlobRefs) -> NDArray[np.bool_]:
        """Which blobs of m samples differ, bool [m]; what one has and the other lacks does.

        Raises:
            StorageError: A segment cannot be read.
        """
        absent, lacks = one.length < 0, other.length < 0
        found: NDArray[np.bool_] = absent != lacks
        numbers = {id: number for number, id in enumerate(dict.fromkeys((*one.segments, *other.segments)))}
        segments = [np.array([numbers[id] for id in refs.segments], np.int64)[refs.segment] for refs in (one, other)]
        same = (segments[0] == segments[1]) & (one.offset == other.offset) & (one.length == other.length)
        rows = np.flatnonzero(~absent & ~lacks & ~same)
        if not len(rows):
            return found
        mine, theirs = self.checksums(one, rows), self.checksums(other, rows)
        packed = [np.zeros(len(rows), np.bool_) if r.compressed is None else r.compressed[rows] for r in (one, other)]
        alike = (mine == theirs) & (one.length[rows] == other.length[rows]) & (packed[0] == packed[1])
        found[rows[~alike]] = True
        # The same bytes may be stored compressed here, and as they are there.
        for row in rows[~alike & (packed[0] != packed[1])].tolist():
            both = [self._warehouse.blobs.reader.read(refs.take([row]))[0] for refs in (one, other)]
            found[row] = bytes(both[0]) != bytes(both[1])
        return found

    def checksums(self, refs: BlobRefs, rows: Rows) -> NDArray[np.uint64]:
        """The checksums of the stored bytes of the blobs at some rows, which all have one."""
        found = np.zeros(len(rows), np.uint64)
        segment, offset, length = refs.segment[rows], refs.offset[rows], refs.length[rows]
        for number in np.unique(segment).tolist():
            mine, id = np.flatnonzero(segment == number), refs.segments[number]
            if id == INLINE:  # see `inline_checksums`
                found[mine] = offset[mine].astype(np.int64).view(np.uint64)
                continue
            index = self._index(id)
            # An empty blob has its offset in common with the next one.
            at = np.searchsorted(index.offsets, offset[mine], side="right") - 1
            right = (at >= 0) & (length[mine] > 0)
            found[mine[right]] = index.checksums[at[right]]
        return found

    def _index(self, id: ObjectId) -> SegmentIndex:
        if id not in self._known:
            doc = self._warehouse.index["segments"].find_one({"_id": id})
            if doc is None:
                raise StorageError(f"segment {id}, to which samples refer, is not in the warehouse; run fsck")
            place = SegmentPlace.from_doc(doc)
            found = read_segment_index(self._warehouse.blobs.store(doc["root"]), place.key)
            while len(self._known) >= _KEPT:
                del self._known[next(iter(self._known))]
            self._known[id] = found
        return self._known[id]


def inline_checksums(name: str, table: SampleTable, rows: Rows) -> BlobRefs:
    """References in which the checksum of a blob in a document stands in place of its offset; see `read_now.Place`."""
    refs, found = table.refs[name], table.inline[name]
    offset = refs.offset.astype(np.int64)
    if found.checksum is not None:
        offset[rows] = found.checksum[rows]
    return BlobRefs(refs.segments, refs.segment, offset, refs.length, refs.compressed)
