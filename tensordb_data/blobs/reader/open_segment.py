"""One segment that a reader has opened."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from bson import ObjectId

from tensordb_data.blobs.reader.cached_file import CachedFile
from tensordb_data.blobs.reader.disk_cache import SegmentCache
from tensordb_data.blobs.segments.format import (
    ENTRY_BYTES,
    MAGIC,
    TRAILER_BYTES,
    SegmentIndex,
    SegmentPlace,
    Trailer,
    check_magic,
    read_index,
    read_trailer,
)
from tensordb_data.blobs.segments.references import at_row
from tensordb_data.blobs.stores.base import Store
from tensordb_data.common.system.leases import Lease, lease_on
from tensordb_data.common.system.mmap import Bytes1D, UnmappedError, copied, map_file
from tensordb_data.errors import CorruptBlobError, StorageError

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class CutShortError(CorruptBlobError):
    """The file of a segment was cut short after it was mapped."""

    def __init__(self, segment: OpenSegment) -> None:
        super().__init__(f"{segment.name}: expected {segment.nbytes} bytes, found some gone while it was read: cut off")
        self.segment = segment


class OpenSegment:
    """One segment: mapped where it is a file of this machine or in the cache, and otherwise with its index in memory.

    Args:
        doc: its document in the `segments` collection.
        store: the store that has it.
        cache: where a remote one may be kept.

    Raises:
        CorruptBlobError: the object is not the segment that the document describes.
        StorageError: the store does not have it, or cannot be reached.
    """

    def __init__(self, doc: Mapping[str, Any], store: Store, cache: SegmentCache | None = None) -> None:
        self.id: ObjectId = doc["_id"]
        place = SegmentPlace.from_doc(doc)
        self.key = place.key
        self.store = store
        self.nbytes = place.nbytes
        self.name = f"segment {self.id} ({store.url}/{self.key})"
        self.mapped: Bytes1D | None = None
        self.index: SegmentIndex | None = None
        """Of a remote segment; of others it is read where they are mapped."""
        self.file: CachedFile | None = None
        """Of a remote segment: its place in the cache."""
        self.lease: Lease | None = None
        """Of a local segment: while it is held, mapped memory can be read as it is. Otherwise the kernel copies it."""
        path = store.local_path(self.key)
        if path is not None:
            self.mapped, self.lease = self._map(path), lease_on(path, self.nbytes)
            trailer, _ = self._describe_mapped(self.mapped)
            place.check_index(trailer.index_checksum, self.name)
        else:
            trailer = self._open_remote(place, cache)
        self.blobs = trailer.index[1] // ENTRY_BYTES
        """How many there are."""
        self.end = trailer.documents[0]
        """Where the last one ends."""
        self.index_start = trailer.index[0]
        self.compared = np.zeros(self.blobs, np.uint8)
        """1 for each blob that is mapped and has been compared with its checksum."""
        self.coming = np.zeros(self.blobs if path is None else 0, np.int64)
        """The request that is under way for each blob of a remote segment, or 0."""
        self.requests: dict[int, Future[Any]] = {}
        self.waiting: Any = None
        """The newest request that has not begun, which may still grow."""

    def _open_remote(self, place: SegmentPlace, cache: SegmentCache | None) -> Trailer:
        start, length = place.index
        if start + length > self.nbytes:
            raise CorruptBlobError(f"{self.name}: expected an index within {self.nbytes} bytes, found it at {start}")
        blobs, name = length // ENTRY_BYTES, ""
        if cache is not None:
            name = cache.name(self.store.url, self.key, self.id, self.nbytes, start, length)
            self.file = cache.open(name, self.nbytes, blobs)
            if self.file is not None:
                try:
                    trailer, self.index = self._describe_mapped(self.file.data)
                    if trailer.index != place.index:
                        raise CorruptBlobError(f"{self.name}: expected an index at {place.index}, not {trailer.index}")
                    place.check_index(trailer.index_checksum, self.name)
                    self.mapped = self.file.data
                    return trailer
                except CorruptBlobError:
                    cache.discard(name)
        try:
            tail = self.store.get_ranges(self.key, [start], [self.nbytes - start])[0]
        except StorageError:
            self._check_size(self.store.size(self.key))
            raise
        trailer, self.index = self._describe(tail)
        place.check_index(trailer.index_checksum, self.name)
        if cache is not None:
            self.file = cache.create(name, self.nbytes, blobs, [(0, memoryview(MAGIC)), (start, tail)])
            if self.file is not None:
                self.mapped = self.file.data
        return trailer

    def holds(self, address: int) -> bool:
        """Whether an address is in the mapped memory of this segment, marks included."""
        spaces = [self.mapped] if self.file is None else [self.mapped, self.file.marks]
        return any(s is not None and s.ctypes.data <= address < s.ctypes.data + len(s) for s in spaces)

    def positions(self, offsets: Int64s, lengths: Int64s, compressed: Bools, rows: Int64s) -> Int64s:
        """The numbers of some blobs of a segment that is not mapped.

        Raises:
            CorruptBlobError: a reference is to what is no blob of this segment.
        """
        index = self.index
        assert index is not None
        at = np.searchsorted(index.offsets, offsets, "right") - 1
        if not self.blobs:
            self.refuse(offsets, lengths, np.ones(len(offsets), np.bool_), rows)
        known = (index.offsets[at], index.lengths[at], index.compressed[at])
        self.refuse(offsets, lengths, is_wrong(at, known, (offsets, lengths, compressed)), rows)
        return at

    def compare(
        self, number: int, offset: int, length: int, checksum: int, row: int, data: memoryview | None = None
    ) -> bool:
        """Whether a mapped blob, of which `data` may be a copy, matches its checksum.

        Raises:
            CorruptBlobError: it does not match, and cannot be fetched anew.
        """
        assert self.mapped is not None
        view = self.mapped[offset : offset + length]
        try:
            found = xxhash.xxh3_64_intdigest(copied(view) if data is None else data)
        except UnmappedError:
            if self.file is None:
                raise at_row(CutShortError(self), row) from None
            return False
        if found == checksum:
            self.compared[number] = 1
        elif self.file is None:
            raise at_row(self.damaged(offset, length, checksum, found), row)
        return found == checksum

    def damaged(self, offset: int, length: int, expected: int, found: int) -> CorruptBlobError:
        """What to raise for a blob that does not match its checksum."""
        return CorruptBlobError(
            f"{self.name}: the {length} bytes at {offset} do not match their checksum "
            f"(expected {expected:016x}, found {found:016x}): the stored blob is damaged"
        )

    def missing(self, first: int, last: int) -> tuple[int, int] | None:
        """From the first to after the last of some blobs that the cached file does not have, or has damaged."""
        assert self.index is not None
        columns = (self.index.offsets, self.index.lengths, self.index.checksums)
        fresh = first + np.flatnonzero((self.compared[first:last] == 0) & (self.index.lengths[first:last] > 0))
        there = fresh if self.file is None else fresh[self.file.marked(first, last)[fresh - first]]
        for number, o, n, checksum in zip(there.tolist(), *(c[there].tolist() for c in columns), strict=True):
            self.compare(number, o, n, checksum, -1)
        left = fresh[self.compared[fresh] == 0]
        return (int(left[0]), int(left[-1]) + 1) if len(left) else None

    def refuse(self, offsets: Int64s, lengths: Int64s, wrong: Bools, rows: Int64s) -> None:
        """Raise for the first reference that is wrong, if one is."""
        if wrong.any():
            i = int(np.argmax(wrong))
            error = CorruptBlobError(
                f"{self.name}: expected a blob of {int(lengths[i])} bytes at {int(offsets[i])}, found none: "
                "the reference does not belong to this segment"
            )
            raise at_row(error, int(rows[i]))

    def _describe(self, tail: memoryview) -> tuple[Trailer, SegmentIndex]:
        trailer = read_trailer(tail, self.nbytes, self.name)
        at, length = trailer.index
        start = at - (self.nbytes - len(tail))
        if start < 0:
            raise CorruptBlobError(f"{self.name}: expected its index at {self.nbytes - len(tail)}, found it at {at}")
        return trailer, read_index(tail[start : start + length], trailer, self.name)

    def _map(self, path: Path) -> Bytes1D:
        try:
            self._check_size(path.stat().st_size)
            mapped = map_file(path, self.nbytes)
        except StorageError:
            raise
        except FileNotFoundError:
            raise StorageError(f"{self.name}: expected a file at {path}, found none: was it deleted?") from None
        except OSError as error:
            raise StorageError(f"{self.name}: cannot read {path}: {error.strerror}") from error
        return mapped

    def _describe_mapped(self, mapped: Bytes1D) -> tuple[Trailer, SegmentIndex]:
        try:
            check_magic(copied(mapped[: len(MAGIC)]), self.name)
            trailer = read_trailer(copied(mapped[-TRAILER_BYTES:]), self.nbytes, self.name)
            at, length = trailer.index
            return trailer, read_index(copied(mapped[at : at + length]), trailer, self.name)
        except UnmappedError:
            raise CutShortError(self) from None

    def _check_size(self, size: int) -> None:
        if size != self.nbytes or size < len(MAGIC) + TRAILER_BYTES:
            raise CorruptBlobError(f"{self.name}: expected {self.nbytes} bytes, found {size}: cut off or replaced")


def is_wrong(at: Int64s, known: tuple[Int64s, Int64s, Bools], asked: tuple[Int64s, Int64s, Bools]) -> Bools:
    """Which references (offset, length, compressed) differ from the blobs that were found `at` their places."""
    # An empty blob shares its offset with the one after it, and there is nothing in it to compare.
    differs = (asked[1] != 0) & ((known[1] != asked[1]) | (known[2] != asked[2]))
    wrong: Bools = (at < 0) | (known[0] != asked[0]) | differs
    return wrong
