"""Reading many blobs at once, from segments of any store."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import threading
import time
import weakref
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard
from bson import ObjectId

from tensordb_data.blobs.cache import SegmentCache
from tensordb_data.blobs.fetch import REQUEST_COST
from tensordb_data.blobs.inline import INLINE
from tensordb_data.blobs.mapping import array_at
from tensordb_data.blobs.memory import MemoryStore
from tensordb_data.blobs.opened import Bools, Int64s, OpenSegment, Table, at_row, groups
from tensordb_data.blobs.refs import BlobRefs
from tensordb_data.blobs.remote import GAP, WASTE, Arrival, Remote
from tensordb_data.blobs.segments import ENTRY_BYTES
from tensordb_data.blobs.store import Store
from tensordb_data.errors import CorruptBlobError, StorageError

Blob = memoryview | bytes
Batch = npt.NDArray[np.uint8]
FindReferences = Callable[[Sequence[ObjectId], Sequence[str]], Mapping[ObjectId, Mapping[str, Any]]]

_MAX_TABLES = 64
_TEND = 5.0  # seconds between two looks at which cached segments are in use
_KNOWN = 64  # batches in a row that needed no store, after which nothing need be announced
_SCOUTS = 32  # announcements that wait for their segments to be opened, at a time
_AHEAD = 2  # times what may be in flight is announced
_FITS = 0.9  # of the cache, at most, that a plan may fill with more than it wants
_LARGE = 16 << 10  # bytes from which a frame is worth a call of its own
_INDEX_BYTES = ENTRY_BYTES + 8  # of a remote segment's index in memory, for each blob


@dataclasses.dataclass(frozen=True)
class Begun:
    """A read that has begun: the table it goes through, and the blobs of it that have to be fetched."""

    table: Table
    wanted: list[tuple[OpenSegment, Int64s, Int64s, list[concurrent.futures.Future[Arrival]]]]
    """For each segment: the rows, the numbers of their blobs, and the requests that bring them."""


class BlobReader:
    """Reads blobs by reference. One serves all threads of a process.

    Local segments are mapped into memory, and each of their blobs is compared with its checksum the first time.
    From other stores near ranges are fetched together, many at a time, every blob is compared, and what came is kept
    in the cache, which is mapped in the same way.

    Args:
        find_segments: the documents of segments, by their ids.
        store: the store of a blob root, by its number.
        find_references: the blob references in sample documents now, by `_id` and field: for inline blobs.
        cache: where blobs of remote stores are kept; None reads them through.
        max_open: local segments kept mapped.
        max_index_bytes: memory for the indexes of remote segments.
    """

    def __init__(
        self,
        find_segments: Callable[[Sequence[ObjectId]], Sequence[Mapping[str, Any]]],
        store: Callable[[int], Store],
        find_references: FindReferences | None = None,
        *,
        cache: SegmentCache | None = None,
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
        self._opening: dict[ObjectId, concurrent.futures.Future[OpenSegment]] = {}
        self._tables: dict[int, Table] = {}
        self._remote = Remote(cache)
        if cache is not None:
            cache.dropped = self._drop
        self._cache = cache
        self._scouts: concurrent.futures.ThreadPoolExecutor | None = None
        self._scouts_pid = 0
        self._trust = object()
        self._known = _KNOWN
        self._tended = 0.0
        self._closed = False
        self._local = threading.local()

    @property
    def ahead(self) -> int:
        """How many bytes of references to announce (see `prefetch`) before they are read; 0 while all is at hand."""
        return 0 if self._known >= _KNOWN else _AHEAD * self._remote.fetcher.window.limit

    @property
    def cache_bytes(self) -> int | None:
        """How much the cache may hold; None when there is none."""
        return None if self._cache is None else self._cache.cap

    def prefetch(self, refs: BlobRefs) -> None:
        """Announce that these very references will be read soon, in the order of such calls. Returns at once."""
        if not len(refs) or INLINE in refs.segments or int(refs.length.min()) < 0:
            return
        # The queue must not keep alive what nobody is going to read any more.
        known = weakref.ref(refs)

        def begin() -> Begun | None:
            found = known()
            return None if found is None else self._begin(found, urgent=False)

        with self._lock:
            if self._closed:
                return
            if self._scouts is None or self._scouts_pid != os.getpid():
                self._scouts = concurrent.futures.ThreadPoolExecutor(_SCOUTS, thread_name_prefix="tensordb-blobs-ahead")
                self._scouts_pid = os.getpid()
            object.__setattr__(refs, "ahead", self._scouts.submit(begin))

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
        marks = None if refs.checks is None else refs.checks.marks
        table = self._table(refs) if marks is not None and marks.complete else None
        known = table is not None and marks is not None and marks.trust is table.trust
        size = marks.size if known and marks is not None else None
        if size is None:
            size = int(refs.length[0])
            if np.count_nonzero(refs.length == size) < len(refs):
                return None
        if table is None or not known:
            table, extra = self._ready(refs, size)
            if extra or not table.local:
                return np.frombuffer(bytearray().join(_joined(table, refs, extra)), np.uint8).reshape(len(refs), size)
        if table.cached:
            self._use(table, refs)
        starts = table.bases.take(refs.segment)
        starts += refs.offset
        if not size:
            return np.empty((len(refs), 0), np.uint8)
        return table.gather(starts, size)

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

    def missed(self) -> int:
        """How many blobs this thread had to fetch from a store elsewhere since it asked last."""
        count, self._local.missed = getattr(self._local, "missed", 0), 0
        return count

    def close(self) -> None:
        """Let all mappings and threads go. Blobs that `read` returned stay valid."""
        with self._lock:
            self._closed = True
            self._opened.clear()
            self._tables.clear()
            scouts, self._scouts = self._scouts, None
        if scouts is not None and self._scouts_pid == os.getpid():
            scouts.shutdown(wait=False, cancel_futures=True)
        self._remote.close()

    def _gather_compressed(self, refs: BlobRefs) -> Batch | None:
        assert refs.compressed is not None
        stored = self._stored(refs)
        rows, plain = np.flatnonzero(refs.compressed).tolist(), np.flatnonzero(~refs.compressed).tolist()
        size = self._content_size(refs, stored[rows[0]], rows[0])
        if any(self._content_size(refs, stored[row], row) != size for row in rows):
            return None
        if any(len(stored[row]) != size for row in plain):
            return None
        if not plain and size < _LARGE:
            return _as_batch(self._decompress(refs, stored, rows), size)
        batch = np.empty((len(refs), size), np.uint8)
        if size < _LARGE:
            batch[rows] = _as_batch(self._decompress(refs, stored, rows), size)
        else:
            self._decompress_into(batch, refs, stored, rows)
        for row in plain:
            batch[row] = np.frombuffer(stored[row], np.uint8)
        return batch

    def _stored(self, refs: BlobRefs) -> list[Blob]:
        """The stored bytes of all references, checked."""
        if not len(refs):
            return []
        table, extra = self._ready(refs, None)
        if table.cached:
            self._use(table, refs)
        return _joined(table, refs, extra)

    def _ready(self, refs: BlobRefs, size: int | None) -> tuple[Table, dict[int, memoryview]]:
        """A table through which the references can be read, all of them checked, and by row the stored bytes of those
        blobs that are nowhere but in this process.

        `size` is the length of each, where that is one number.
        """
        ahead, begun = refs.ahead, None
        object.__setattr__(refs, "ahead", None)
        try:
            begun = None if ahead is None else ahead.result()
            begun = begun or self._begin(refs, urgent=True)
            extra: dict[int, memoryview] = {}
            for segment, rows, numbers, futures in begun.wanted:
                self._local.missed = getattr(self._local, "missed", 0) + len(rows)
                arrivals = []
                for future in futures:
                    try:
                        arrivals.append(future.result())
                    except StorageError as error:
                        # The error belongs to all who wait for this request.
                        raise at_row(type(error)(str(error)), int(rows[0])) from error
                for row, number in zip(rows.tolist(), numbers.tolist(), strict=True):
                    if not segment.compared[number]:
                        extra[row] = _arrived(arrivals, number, row)
        except concurrent.futures.CancelledError:
            raise StorageError("the blob reader is closed: connect again") from None
        table = begun.table
        if not extra and table.local and table.trust is self._trust:
            refs.set_checked(table.trust, size)
        return table, extra

    def _begin(self, refs: BlobRefs, urgent: bool) -> Begun:
        """Open what the references need, check what is at hand, and ask for the rest."""
        table = self._table(refs)
        wanted: list[tuple[OpenSegment, Int64s, Int64s, list[concurrent.futures.Future[Arrival]]]] = []
        if not refs.checked(table.trust):
            rows, at = np.arange(len(refs)), np.zeros(len(refs), np.int64)
            local = rows if table.local else rows[table.is_local[refs.segment]]
            absent = local[:0]
            if len(local):
                absent, numbers = table.verify(refs, local)
                at[absent] = numbers
            for number, part in groups(refs.segment, np.setdiff1d(rows, local, assume_unique=True)):
                at[part] = table.at(number).positions(*_columns(refs, part), part)
                absent = np.concatenate((absent, part[refs.length[part] > 0]))
            for number, part in groups(refs.segment, absent):
                segment = table.at(number)
                dense = self._is_dense(refs, number, segment)
                futures = self._remote.want(segment, np.unique(at[part]), dense, urgent)
                wanted.append((segment, part, at[part], futures))
        if wanted:
            self._known = 0
        return Begun(table, wanted)

    def _is_dense(self, refs: BlobRefs, number: int, segment: OpenSegment) -> bool:
        """Whether the plan that the references are from will want most of a segment, and the cache can hold it all."""
        if refs.checks is None or self._cache is None or segment.file is None:
            return False
        counts, nbytes = refs.checks.share()
        count, used = int(counts[number]), float(nbytes[number])
        if not used or segment.end - used > count * max(GAP, used / count / WASTE):
            return False
        return float(nbytes.sum()) * segment.end / used <= _FITS * self._cache.cap

    def _use(self, table: Table, refs: BlobRefs) -> None:
        """Note which cached segments are used, so that others go first; let go of those that were removed."""
        self._known += 1
        table.used[refs.segment] = True
        now = time.monotonic()
        if now - self._tended < _TEND or self._cache is None:
            return
        self._tended = now
        used = [segment for segment, is_used in zip(table.opened, table.used.tolist(), strict=True) if is_used]
        table.used[:] = False
        self._cache.touch(segment.file for segment in used if segment is not None and segment.file is not None)

    def _drop(self, names: set[str]) -> None:
        """Let go of cached segments whose files were removed or replaced."""
        with self._lock:
            gone = [
                id
                for id, segment in self._opened.items()
                if segment.file is not None and segment.file.path.name in names and not segment.file.is_current()
            ]
            for id in gone:
                del self._opened[id]
            if gone:
                self._tables.clear()
                self._trust = object()

    def _table(self, refs: BlobRefs) -> Table:
        """A table in which every segment that the references use is open."""
        table = self._tables.get(id(refs.segments))
        if table is None or table.ids is not refs.segments:
            table = self._new_table(refs.segments, {})
        checks = refs.checks
        if table.complete and checks is not None and checks.marks is not None and checks.marks.complete:
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
            table = Table(ids, self._opened, self._trust)
            self._make_room(held.keys())
            self._tables.pop(id(ids), None)
            self._tables[id(ids)] = table
            while len(self._tables) > _MAX_TABLES:
                del self._tables[next(iter(self._tables))]
            return table

    def _open(self, refs: BlobRefs, numbers: Sequence[int]) -> list[OpenSegment]:
        with self._lock:
            under_way = {number: self._opening.get(refs.segments[number]) for number in numbers}
        unknown = [refs.segments[number] for number, future in under_way.items() if future is None]
        docs = {doc["_id"]: doc for doc in self._find_segments(unknown)} if unknown else {}
        opened: dict[int, OpenSegment | concurrent.futures.Future[OpenSegment]] = {}
        number = 0
        try:
            for number, future in under_way.items():
                opened[number] = future or self._open_one(refs.segments[number], docs)
            for number, found in opened.items():
                if isinstance(found, concurrent.futures.Future):
                    opened[number] = found.result()
        except StorageError as error:
            raise at_row(type(error)(str(error)), int(np.argmax(refs.segment == number))) from error
        return [found for found in opened.values() if isinstance(found, OpenSegment)]

    def _open_one(
        self, id: ObjectId, docs: Mapping[ObjectId, Mapping[str, Any]]
    ) -> OpenSegment | concurrent.futures.Future[OpenSegment]:
        """A local segment at once; mapping a file takes less time than handing it to a thread."""
        if id not in docs:
            raise StorageError(f"expected the segment {id} in the index, found none: was its data deleted?")
        store = self._store(docs[id].get("root", 0))
        if store.local_path(docs[id]["key"]) is not None:
            return OpenSegment(docs[id], store)
        cache = None if isinstance(store, MemoryStore) else self._cache
        with self._lock:
            future = self._opening.get(id)
            if future is None:
                fetcher = self._remote.fetcher
                work = partial(fetcher.retried, partial(OpenSegment, docs[id], store, cache))
                future = fetcher.submit(work, lambda: REQUEST_COST, urgent=True)
                self._opening[id] = future
        future.add_done_callback(lambda _: self._opening.pop(id, None))
        return future

    def _make_room(self, keep: Container[ObjectId]) -> None:
        """Forget those opened longest ago. Mappings in use live on in the tables and views that use them."""
        mapped = sum(segment.mapped is not None for segment in self._opened.values())
        indexes = sum(_INDEX_BYTES * segment.blobs for segment in self._opened.values() if segment.mapped is None)
        for id, segment in list(self._opened.items()):
            local = segment.mapped is not None
            if id not in keep and (mapped > self._max_open if local else indexes > self._max_index_bytes):
                del self._opened[id]
                self._tables.clear()
                if segment.file is not None:
                    self._trust = object()
                mapped -= local
                indexes -= 0 if local else _INDEX_BYTES * segment.blobs

    def _content_size(self, refs: BlobRefs, stored: Blob, row: int) -> int:
        try:
            return zstandard.frame_content_size(stored)
        except zstandard.ZstdError as error:
            raise self._bad_frame(refs, row, error) from None

    def _decompressor(self) -> zstandard.ZstdDecompressor:
        """This thread's own."""
        found = getattr(self._local, "decompressor", None)
        if found is None:
            found = self._local.decompressor = zstandard.ZstdDecompressor()
        return found

    def _decompress_into(self, batch: Batch, refs: BlobRefs, stored: Sequence[Blob], rows: Sequence[int]) -> None:
        """Those rows decompressed into their places: into memory that numpy takes in huge pages and uses again."""
        decompressor = self._decompressor()
        for row in rows:
            try:
                # All of the frame is here, and all of its room: the library then does it in one go.
                count = decompressor.stream_reader(stored[row]).readinto(batch[row])
            except zstandard.ZstdError as error:
                raise self._bad_frame(refs, row, error) from None
            if count != batch.shape[1]:
                raise self._bad_frame(refs, row, f"it ends after {count} of {batch.shape[1]} bytes")

    def _decompress(self, refs: BlobRefs, stored: Sequence[Blob], rows: Sequence[int]) -> Any:
        """Those rows decompressed, as a sequence of buffers."""
        decompressor = self._decompressor()
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

    def _bad_frame(self, refs: BlobRefs, row: int, error: Exception | str) -> StorageError:
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


def _columns(refs: BlobRefs, rows: Int64s) -> tuple[Int64s, Int64s, Bools]:
    """Offset, length and compression of some references."""
    compressed = np.zeros(len(rows), np.bool_) if refs.compressed is None else refs.compressed[rows]
    return refs.offset[rows], refs.length[rows], compressed


def _arrived(arrivals: Sequence[Arrival], number: int, row: int) -> memoryview:
    for arrival in arrivals:
        if number in arrival.bad:
            raise at_row(CorruptBlobError(str(arrival.bad[number])), row)
        if (blob := arrival.blob(number)) is not None:
            return blob
    raise at_row(StorageError("the blob reader is closed: connect again"), row)


def _joined(table: Table, refs: BlobRefs, extra: Mapping[int, memoryview]) -> list[Blob]:
    """The stored bytes of all references: those in `extra`, by row, and views of mapped memory."""
    views: dict[int, memoryview] = {}
    blobs: list[Blob] = []
    columns = (refs.segment.tolist(), refs.offset.tolist(), refs.length.tolist())
    for row, (number, start, length) in enumerate(zip(*columns, strict=True)):
        if (found := extra.get(row)) is not None:
            blobs.append(found)
            continue
        view = views.get(number)
        if view is None:
            mapped = table.at(number).mapped
            view = views[number] = memoryview(b"") if mapped is None else mapped.data
        blobs.append(view[start : start + length])
    return blobs
