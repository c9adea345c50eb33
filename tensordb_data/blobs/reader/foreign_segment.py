"""One reference segment that a reader has opened: its blobs are read from files of others when they are asked for.

A file is opened for each batch, and compared with what it was: one of another size or time has all of its ranges
compared with their checksums, and others those that this process reads for the first time. It is read by `pread`, never
mapped, unless its root says that its files are stable: so a file that is cut short is an error, and no signal.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash

from tensordb_data.blobs.reader.open_segment import Int64s, OpenSegment
from tensordb_data.blobs.segments.foreign import SELF
from tensordb_data.blobs.segments.format import TRAILER_BYTES, SegmentPlace, read_trailer
from tensordb_data.blobs.segments.reference_format import REFERENCES, ReferenceIndex, read_references
from tensordb_data.blobs.segments.references import at_row
from tensordb_data.blobs.stores.base import Store
from tensordb_data.blobs.stores.foreign import FileState, FindRoot, ForeignFile, changed, copy_of
from tensordb_data.common.system.mmap import Bytes1D
from tensordb_data.errors import CorruptBlobError, StorageError

_MAPPED = 64
"""Files of stable roots that a segment keeps mapped."""


class ForeignSegment(OpenSegment):
    """A reference segment, with its index in memory.

    Args:
        doc: its document in the `segments` collection.
        store: the store that has it.
        root: gives the roots that this client has opened.

    Raises:
        CorruptBlobError: the object is not the segment that the document describes.
        StorageError: the store does not have it, or cannot be reached.
    """

    index: ReferenceIndex

    def __init__(self, doc: Mapping[str, Any], store: Store, root: FindRoot) -> None:
        place = SegmentPlace.from_doc(doc)
        self.id, self.key, self.store, self.nbytes = doc["_id"], place.key, store, place.nbytes
        self.name = f"segment {self.id} ({store.url}/{self.key})"
        self.mapped = self.file = self.lease = self.waiting = None
        start, length = place.index
        size = store.size(place.key)
        if size != self.nbytes or start + length + TRAILER_BYTES != size:
            raise CorruptBlobError(
                f"{self.name}: expected {self.nbytes} bytes with an index of {length} at {start}, found {size} bytes:"
                " cut off or replaced"
            )
        part, tail = store.get_ranges(place.key, [start, size - TRAILER_BYTES], [length, TRAILER_BYTES])
        trailer = read_trailer(tail, size, self.name, REFERENCES)
        place.check_index(trailer.index_checksum, self.name)
        self.index = read_references(part, trailer, self.name)
        place.check(size, self.index)
        self._find_root = root
        self.blobs, self.end = len(self.index.offsets), trailer.documents[0]
        self.index_start = start
        self.compared = np.zeros(self.blobs, np.uint8)
        self.coming = np.zeros(0, np.int64)
        self.requests = {}
        self._lock = threading.Lock()
        self._stable: dict[int, tuple[FileState, Bytes1D]] = {}

    def read(self, numbers: Int64s, rows: Int64s) -> dict[int, memoryview]:
        """The stored bytes of some blobs, checked, by row.

        Args:
            numbers: The blobs.
            rows: What errors call each of them.

        Raises:
            CorruptBlobError: A file is missing, was cut short, or holds other bytes now.
            StorageError: A file cannot be read, or the client has not opened its root.
        """
        files, at = self.index.file[numbers], self.index.at[numbers]
        order = np.lexsort((at, files))  # each file is opened once, and read from its beginning
        found: dict[int, memoryview] = {}
        cuts = np.flatnonzero(np.diff(files[order])) + 1
        for some in np.split(order, cuts) if len(order) else ():
            number = int(files[some[0]])
            part, of = numbers[some], rows[some]
            try:
                found.update(self._own(part, of) if number == SELF else self._foreign(number, part, of))
            except StorageError as error:
                if error.row is not None:
                    raise
                raise at_row(error, int(of[0])) from error.__cause__
        return found

    def _own(self, numbers: Int64s, rows: Int64s) -> dict[int, memoryview]:
        """Blobs that were copied into the object itself."""
        index = self.index
        offsets, lengths = index.at[numbers].tolist(), index.lengths[numbers].tolist()
        found: dict[int, memoryview] = {}
        parts = self.store.get_ranges(self.key, offsets, lengths)
        for row, number, offset, data in zip(rows.tolist(), numbers.tolist(), offsets, parts, strict=True):
            if not self.compared[number]:
                digest, expected = xxhash.xxh3_64_intdigest(data), int(index.checksums[number])
                if digest != expected:
                    raise at_row(self.damaged(offset, len(data), expected, digest), row)
                self.compared[number] = 1
            found[row] = data
        return found

    def _foreign(self, file_number: int, numbers: Int64s, rows: Int64s) -> dict[int, memoryview]:
        """Blobs in one file of others."""
        index = self.index
        file = index.files.file(file_number)
        ranges = list(zip(index.at[numbers].tolist(), index.lengths[numbers].tolist(), strict=True))
        state, parts = self._ranges(file_number, file, ranges)
        same = state == (file.size, file.mtime_ns)
        checksums = index.checksums[numbers].tolist()
        found: dict[int, memoryview] = {}
        for row, number, (offset, length), data, expected in zip(
            rows.tolist(), numbers.tolist(), ranges, parts, checksums, strict=True
        ):
            if data is None:
                raise at_row(changed(file, state, f"it has no {length:,} bytes at {offset:,} any more"), row)
            if not (same and self.compared[number]):
                if xxhash.xxh3_64_intdigest(data) != expected:
                    raise at_row(changed(file, state, f"the {length:,} bytes at {offset:,} are others"), row)
                self.compared[number] = 1
            found[row] = data
        return found

    def _ranges(
        self, number: int, file: ForeignFile, ranges: list[tuple[int, int]]
    ) -> tuple[FileState, list[memoryview | None]]:
        root = self._find_root(file.root)
        if not root.stable or not file.size:
            return root.read(file, ranges)
        with self._lock:
            found = self._stable.get(number)
        if found is None:
            found = root.mapped(file)
            with self._lock:
                self._stable[number] = found
                while len(self._stable) > _MAPPED:
                    del self._stable[next(iter(self._stable))]
        state, memory = found
        return state, [copy_of(memory, offset, length) for offset, length in ranges]
