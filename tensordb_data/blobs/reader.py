"""Reading many blobs at once, from segments of any store."""

from __future__ import annotations

import concurrent.futures
import os
import threading
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard
from bson import ObjectId

from tensordb_data.blobs.mapping import array_at
from tensordb_data.blobs.opened import Int64s, OpenSegment, Table, at_row, groups
from tensordb_data.blobs.refs import BlobRefs
from tensordb_data.blobs.segments import ENTRY_BYTES
from tensordb_data.blobs.store import Store
from tensordb_data.errors import CorruptBlobError, StorageError

Blob = memoryview | bytes
Batch = npt.NDArray[np.uint8]
FindReferences = Callable[[Sequence[ObjectId], Sequence[str]], Mapping[ObjectId, Mapping[str, Any]]]

_GAP = 128 << 10  # bytes read in vain rather than asking a remote store twice
_MAX_RANGE = 8 << 20  # so that one large segment arrives over several connections
_MAX_TABLES = 64
_INDEX_BYTES = ENTRY_BYTES + 8  # of a remote segment's index in memory, for each blob


class BlobReader:
    """Reads blobs by reference. One serves all threads of a process.

    Local segments are mapped into memory, and each of their blobs is compared with its checksum the first time.
    From other stores near ranges are fetched together, several segments at a time, and every blob is compared.

    Args:
        find_segments: the documents of segments, by their ids.
        store: the store of a blob root, by its number.
        find_references: the blob references in sample documents now, by `_id` and field: for inline blobs.
        max_open: local segments kept mapped.
        max_index_bytes: memory for the indexes of remote segments.
    """

    def __init__(
        self,
        find_segments: Callable[[Sequence[ObjectId]], Sequence[Mapping[str, Any]]],
        store: Callable[[int], Store],
        find_references: FindReferences | None = None,
        *,
        max_open: int = 8192,
        max_index_bytes: int = 256 << 20,
    ) -> None:
        self._find_segments = find_segments
        self._store = store
        self._find_references = find_references
        self._max_open = max_open
        self._max_index_bytes = max_index_bytes
        self._lock = threading.Lock()
        self._opened: dict[ObjectId, OpenSegment] = {}
        self._tables: dict[int, Table] = {}
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None
        self._pool_pid = 0
        self._closed = False
        self._local = threading.local()

    def gather(self, refs: BlobRefs) -> Batch | None:
        """The blobs as one new array uint8[m, size], or None when their sizes differ.

        Raises:
            CorruptBlobError: stored bytes do not match their checksum or format; `row` says which reference's.
            StorageError: a store cannot be reached or lacks a segment.
        """
        if not len(refs.offset):
            return np.empty((0, 0), np.uint8)
        if refs.compressed is not None and refs.compressed.any():
            return self._gather_compressed(refs)
        # Batches of a plan, after its first pass, go straight to the gather: for small blobs it leaves time for
        # little else.
        checks = refs.checks
        known = checks is not None and checks.complete
        size = checks.size if checks is not None and known else None
        if size is None:
            size = int(refs.length[0])
            if np.count_nonzero(refs.length == size) < len(refs):
                return None
        table = self._table(refs)
        if not table.local:
            return np.frombuffer(bytearray().join(self._stored(refs)), np.uint8).reshape(len(refs), size)
        if not known:
            self._check(table, refs, np.arange(len(refs)), size)
        starts = table.bases.take(refs.segment)
        starts += refs.offset
        rows: Batch = table.window(size)[starts]
        return rows

    def read(self, refs: BlobRefs) -> list[Blob]:
        """The blobs, each decompressed, in order. What was not compressed may be a view of mapped memory.

        Raises:
            CorruptBlobError: stored bytes do not match their checksum or format; `row` says which reference's.
            StorageError: a store cannot be reached or lacks a segment.
        """
        blobs = self._stored(refs)
        if refs.compressed is not None and refs.compressed.any():
            rows = np.flatnonzero(refs.compressed).tolist()
            unpacked = self._decompress(refs, blobs, rows)
            for i, row in enumerate(rows):
                blobs[row] = memoryview(unpacked[i])
        return blobs

    def references(self, ids: Sequence[ObjectId], fields: Sequence[str]) -> Mapping[ObjectId, Mapping[str, Any]]:
        """The blob references that samples have now, inline bytes included, by `_id` and field.

        Those that were deleted are left out.
        """
        if self._find_references is None:
            raise StorageError("expected references into segments, found some to blobs in documents")
        return self._find_references(ids, fields)

    def close(self) -> None:
        """Let all mappings and threads go. Blobs that `read` returned stay valid."""
        with self._lock:
            self._closed = True
            self._opened.clear()
            self._tables.clear()
            pool, self._pool = self._pool, None
        if pool is not None and self._pool_pid == os.getpid():
            pool.shutdown(wait=False, cancel_futures=True)

    def _gather_compressed(self, refs: BlobRefs) -> Batch | None:
        assert refs.compressed is not None
        stored = self._stored(refs)
        rows, plain = np.flatnonzero(refs.compressed).tolist(), np.flatnonzero(~refs.compressed).tolist()
        size = self._content_size(refs, stored[rows[0]], rows[0])
        if any(self._content_size(refs, stored[row], row) != size for row in rows):
            return None
        if any(len(stored[row]) != size for row in plain):
            return None
        unpacked = self._decompress(refs, stored, rows)
        if not plain:
            return _as_batch(unpacked, size)
        batch = np.empty((len(refs), size), np.uint8)
        batch[rows] = _as_batch(unpacked, size)
        for row in plain:
            batch[row] = np.frombuffer(stored[row], np.uint8)
        return batch

    def _stored(self, refs: BlobRefs) -> list[Blob]:
        """The stored bytes of all references, checked."""
        blobs: list[Blob] = [b""] * len(refs)
        if not len(refs):
            return blobs
        table = self._table(refs)
        rows = np.arange(len(refs))
        local = rows if table.local else rows[table.is_local[refs.segment]]
        if len(local):
            self._check(table, refs, local)
            views = [None if s is None or s.mapped is None else s.mapped.data for s in table.opened]
            columns = (local, refs.segment[local], refs.offset[local], refs.length[local])
            for row, number, start, length in zip(*(column.tolist() for column in columns), strict=True):
                view = views[number]
                assert view is not None
                blobs[row] = view[start : start + length]
        if len(local) < len(refs):
            remote = groups(refs.segment, rows[~table.is_local[refs.segment]])
            for row, blob in self._each(lambda group: self._fetch(table.at(group[0]), refs, group[1]), remote):
                blobs[row] = blob
        return blobs

    def _fetch(self, segment: OpenSegment, refs: BlobRefs, rows: Int64s) -> list[tuple[int, memoryview]]:
        """The stored bytes of some rows, all of one segment, from its store."""
        rows = rows[np.argsort(refs.offset[rows], kind="stable")]
        starts, lengths = refs.offset[rows], refs.length[rows]
        compressed = np.zeros(len(rows), np.bool_) if refs.compressed is None else refs.compressed[rows]
        checksums = segment.checksums(starts, lengths, compressed, rows)
        cuts = _runs(starts, starts + lengths)
        froms = starts[cuts[:-1]]
        sizes = np.maximum.reduceat(starts + lengths, cuts[:-1]) - froms
        try:
            chunks = segment.store.get_ranges(segment.key, froms.tolist(), sizes.tolist())
        except StorageError as error:
            raise at_row(error, int(rows[0])) from error
        chunk = np.repeat(np.arange(len(chunks)), np.diff(cuts))
        columns = (rows, chunk, starts, starts - froms[chunk], lengths, checksums)
        found = []
        for row, i, start, within, length, checksum in zip(*(column.tolist() for column in columns), strict=True):
            stored = chunks[i][within : within + length]
            segment.compare(stored, checksum, start, row)
            found.append((row, stored))
        return found

    def _check(self, table: Table, refs: BlobRefs, rows: Int64s, size: int | None = None) -> None:
        """Check references to local segments that have not been checked before."""
        every = len(rows) == len(refs)
        if every and refs.checked:
            return
        table.verify(refs, rows)
        if every:
            refs.set_checked(size)

    def _table(self, refs: BlobRefs) -> Table:
        """A table in which every segment that the references use is open."""
        table = self._tables.get(id(refs.segments))
        if table is None or table.ids is not refs.segments:
            table = self._new_table(refs.segments, {})
        if table.complete and refs.checks is not None and refs.checks.complete:
            return table
        if int(refs.segment.max()) >= len(refs.segments):
            found = int(refs.segment.max())
            raise StorageError(f"expected references into {len(refs.segments)} segments, found one into number {found}")
        if table.complete:
            return table
        missing = np.unique(refs.segment[~table.is_open[refs.segment]])
        if not len(missing):
            return table
        # Another thread may make room at any time: what this batch needs is held here until its table is made.
        used = [table.opened[number] for number in np.unique(refs.segment).tolist()]
        held = {segment.id: segment for segment in (*used, *self._open(refs, missing.tolist())) if segment is not None}
        return self._new_table(refs.segments, held)

    def _new_table(self, ids: tuple[ObjectId, ...], held: Mapping[ObjectId, OpenSegment]) -> Table:
        with self._lock:
            if self._closed:
                raise StorageError("the blob reader is closed: connect again")
            for id_, segment in held.items():
                self._opened.setdefault(id_, segment)
            table = Table(ids, self._opened)
            self._make_room(held.keys())
            self._tables.pop(id(ids), None)
            self._tables[id(ids)] = table
            while len(self._tables) > _MAX_TABLES:
                del self._tables[next(iter(self._tables))]
            return table

    def _open(self, refs: BlobRefs, numbers: Sequence[int]) -> list[OpenSegment]:
        docs = {doc["_id"]: doc for doc in self._find_segments([refs.segments[number] for number in numbers])}

        def work(number: int) -> list[OpenSegment]:
            id = refs.segments[number]
            try:
                if id not in docs:
                    raise StorageError(f"expected the segment {id} in the index, found none: was its data deleted?")
                return [OpenSegment(docs[id], self._store(docs[id].get("root", 0)))]
            except StorageError as error:
                raise at_row(error, int(np.argmax(refs.segment == number))) from None

        def is_local(number: int) -> bool:
            doc = docs.get(refs.segments[number])
            return doc is None or self._store(doc.get("root", 0)).local_path(doc["key"]) is not None

        # Mapping a file takes less time than handing it to a thread.
        opened, remote = [], []
        for number in numbers:
            if is_local(number):
                opened += work(number)
            else:
                remote.append(number)
        return opened + self._each(work, remote)

    def _make_room(self, keep: Container[ObjectId]) -> None:
        """Forget those opened longest ago. Mappings in use live on in the tables and views that use them."""
        mapped = sum(segment.mapped is not None for segment in self._opened.values())
        indexes = sum(_INDEX_BYTES * segment.blobs for segment in self._opened.values() if segment.mapped is None)
        for id, segment in list(self._opened.items()):
            local = segment.mapped is not None
            if id not in keep and (mapped > self._max_open if local else indexes > self._max_index_bytes):
                del self._opened[id]
                self._tables.clear()
                mapped -= local
                indexes -= 0 if local else _INDEX_BYTES * segment.blobs

    def _each(self, work: Callable[[Any], list[Any]], items: Sequence[Any]) -> list[Any]:
        """The joined results of `work` on every item, a few at a time."""
        if len(items) < 2:
            return [result for item in items for result in work(item)]
        with self._lock:
            if self._closed:
                raise StorageError("the blob reader is closed: connect again")
            if self._pool is None or self._pool_pid != os.getpid():
                self._pool = concurrent.futures.ThreadPoolExecutor(8, thread_name_prefix="tensordb-blobs")
                self._pool_pid = os.getpid()
            futures = [self._pool.submit(work, item) for item in items]
        try:
            return [result for future in futures for result in future.result()]
        finally:
            for future in futures:
                future.cancel()

    def _content_size(self, refs: BlobRefs, stored: Blob, row: int) -> int:
        try:
            return zstandard.frame_content_size(stored)
        except zstandard.ZstdError as error:
            raise self._bad_frame(refs, row, error) from None

    def _decompress(self, refs: BlobRefs, stored: Sequence[Blob], rows: Sequence[int]) -> Any:
        """Those rows decompressed, as a sequence of buffers."""
        decompressor = getattr(self._local, "decompressor", None)
        if decompressor is None:
            decompressor = self._local.decompressor = zstandard.ZstdDecompressor()
        try:
            # One call for all: it holds the GIL only before and after.
            return decompressor.multi_decompress_to_buffer([stored[row] for row in rows])
        except (zstandard.ZstdError, ValueError) as error:
            for row in rows:
                try:
                    decompressor.decompress(stored[row])
                except zstandard.ZstdError as reason:
                    raise self._bad_frame(refs, row, reason) from None
            raise CorruptBlobError(f"expected zstd frames, found others: {error}") from None

    def _bad_frame(self, refs: BlobRefs, row: int, error: Exception) -> StorageError:
        segment = refs.segments[int(refs.segment[row])]
        return at_row(
            CorruptBlobError(f"segment {segment}: expected a zstd frame at {int(refs.offset[row])}: {error}"), row
        )


def _as_batch(blobs: zstandard.BufferWithSegmentsCollection, size: int) -> Batch:
    """Decompressed blobs of one size as one array; without a copy where they lie back to back already."""
    m = len(blobs)
    if not m * size:
        return np.empty((m, size), np.uint8)
    if blobs[m - 1].offset == (m - 1) * size:
        first = np.frombuffer(blobs[0], np.uint8)  # type: ignore[call-overload]
        return array_at(first.ctypes.data, m * size, blobs).reshape(m, size)
    batch = np.empty((m, size), np.uint8)
    for row in range(m):
        batch[row] = np.frombuffer(blobs[row], np.uint8)  # type: ignore[call-overload]
    return batch


def _runs(starts: Int64s, ends: Int64s) -> Int64s:
    """Where to cut sorted ranges into runs that are fetched as one: [0, …, n]."""
    cuts = [0]
    begin, reach = int(starts[0]), int(ends[0])
    for i, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        if start - reach > _GAP or (i > cuts[-1] and max(end, reach) - begin > _MAX_RANGE):
            cuts.append(i)
            begin = start
            reach = end
        reach = max(reach, end)
    return np.array([*cuts, len(starts)], np.int64)
