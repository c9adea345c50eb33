"""Reading many blobs at once, from segments of any store."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from bson import ObjectId

from tensordb_data.blobs.reader.checked_blobs import CheckedBlobs
from tensordb_data.blobs.reader.disk_cache import SegmentCache
from tensordb_data.blobs.reader.foreign_segment import ForeignSegment
from tensordb_data.blobs.reader.open_segment import Bools, CutShortError, Int64s, OpenSegment
from tensordb_data.blobs.reader.open_tables import FindSegments, Tables
from tensordb_data.blobs.reader.remote import GAP, WASTE, Arrival, Remote
from tensordb_data.blobs.reader.segment_table import Table, groups
from tensordb_data.blobs.segments.compression import Batch, Blob, Frames
from tensordb_data.blobs.segments.foreign import ForeignBlob
from tensordb_data.blobs.segments.inline import INLINE
from tensordb_data.blobs.segments.references import BlobRefs, at_row
from tensordb_data.blobs.stores.base import Store
from tensordb_data.blobs.stores.foreign import FindRoot, Root
from tensordb_data.errors import CorruptBlobError, StorageError

FindReferences = Callable[[Sequence[ObjectId], Sequence[str]], Mapping[ObjectId, Mapping[str, Any]]]

T = TypeVar("T")
_TEND = 5.0  # seconds between two looks at which cached segments are in use
_KNOWN = 64  # batches in a row that needed no store, after which nothing need be announced
_SCOUTS = 32  # announcements that wait for their segments to be opened, at a time
_AHEAD = 2  # times what may be in flight is announced
_FITS = 0.9  # of the cache, at most, that a plan may fill with more than it wants


@dataclasses.dataclass(frozen=True)
class PendingRead:
    """A read that has begun: the table that it uses, and the blobs that have to be fetched."""

    table: Table
    wanted: list[tuple[OpenSegment, Int64s, Int64s, list[concurrent.futures.Future[Arrival]]]]
    """For each segment: the rows, the numbers of their blobs, and the requests that bring them."""
    foreign: list[tuple[ForeignSegment, Int64s, Int64s]]
    """For each reference segment: the rows, and the numbers of their blobs."""


class BlobReader:
    """Reads blobs by reference. One serves all threads of a process.

    Local segments are mapped into memory, and each of their blobs is compared with its checksum the first time.
    From other stores near ranges are fetched together, many at a time, every blob is compared, and what came is kept
    in the cache, which is mapped in the same way.

    Args:
        find_segments: the documents of segments, by their ids.
        store: the store of a blob root, by its number.
        find_references: the blob references in sample documents now, by `_id` and field: for inline blobs.
        root: the root of a name, below which files of others are.
        cache: where blobs of remote stores are kept; None reads them through.
        max_open: local segments kept mapped.
        max_index_bytes: memory for the indexes of remote segments.
    """

    def __init__(
        self,
        find_segments: FindSegments,
        store: Callable[[int], Store],
        find_references: FindReferences | None = None,
        *,
        root: FindRoot | None = None,
        cache: SegmentCache | None = None,
        max_open: int = 8192,
        max_index_bytes: int = 256 << 20,
    ) -> None:
        self._find_references = find_references
        self._lock = threading.Lock()
        self._frames = Frames()
        self._remote = Remote(cache)
        self._tables = Tables(
            find_segments, store, root or _no_root, cache, self._remote.fetcher, max_open, max_index_bytes
        )
        self._cache = cache
        self._scouts: concurrent.futures.ThreadPoolExecutor | None = None
        self._scouts_pid = 0
        self._known = _KNOWN
        self._tended = 0.0
        self._closed = False
        self._local = threading.local()

    @property
    def ahead(self) -> int:
        """How many bytes to prefetch ahead of reads; 0 while all blobs are in local memory."""
        return 0 if self._known >= _KNOWN else _AHEAD * self._remote.fetcher.window.limit

    @property
    def cache_bytes(self) -> int | None:
        """How much the cache may hold; None when there is none."""
        return None if self._cache is None else self._cache.cap

    def prefetch(self, refs: BlobRefs) -> None:
        """Begin to fetch the blobs of these references, which will be read soon, in the order of calls.

        Returns at once.
        """
        if not len(refs) or INLINE in refs.segments or int(refs.length.min()) < 0:
            return
        # The queue must not keep references alive that no one will read any more.
        known = weakref.ref(refs)

        def begin() -> PendingRead | None:
            found = known()
            return None if found is None else self._begin(found, urgent=False)

        with self._lock:
            if self._closed:
                return
            if self._scouts is None or self._scouts_pid != os.getpid():
                self._scouts = concurrent.futures.ThreadPoolExecutor(_SCOUTS, thread_name_prefix="tensordb-blobs-ahead")
                self._scouts_pid = os.getpid()
            object.__setattr__(refs, "ahead", self._scouts.submit(begin))

    def gather(self, refs: BlobRefs, nbytes: int | None = None) -> Batch | None:
        """The blobs as one new array uint8[m, size], or None when their sizes differ.

        Args:
            refs: the references.
            nbytes: the size that each must have; None when that is not known.

        Raises:
            CorruptBlobError: stored bytes do not match their checksum or format, or are not so many; `row` says which
                reference's.
            StorageError: a store cannot be reached or lacks a segment.
        """
        if not len(refs.offset):
            return np.empty((0, 0), np.uint8)
        return self._again(refs, lambda: self._gather(refs, nbytes))

    def _again(self, refs: BlobRefs, read: Callable[[], T]) -> T:
        """What `read` returns. Where cached files were cut short meanwhile, their blobs are fetched anew."""
        for _ in refs.segments:
            try:
                return read()
            except CutShortError as error:
                if not self._tables.forget(error.segment):
                    raise
        return read()

    def _gather(self, refs: BlobRefs, nbytes: int | None) -> Batch | None:
        if refs.compressed is not None and refs.compressed.any():
            return self._frames.gather(refs, self._stored(refs), nbytes)
        # After the first pass over a plan, batches go straight to the gather. For small blobs, each further step would
        # take as long as the gather.
        verified = None if refs.checksum_cache is None else refs.checksum_cache.verified
        table = self._tables.table(refs) if verified is not None and verified.complete else None
        known = table is not None and verified is not None and verified.generation is table.generation
        size = verified.size if known and verified is not None else None
        if size is None:
            size = int(refs.length[0])
            if np.count_nonzero(refs.length == size) < len(refs):
                return None
        if nbytes is not None and size != nbytes:
            raise at_row(CorruptBlobError(f"expected a blob of {nbytes:,} bytes, found one of {size:,}"), 0)
        if table is None or not known:
            table, extra = self._ready(refs, size)
            if extra or not table.local:
                return np.frombuffer(bytearray().join(_joined(table, refs, extra)), np.uint8).reshape(len(refs), size)
        if table.cached:
            self._use(table, refs.segment)
        starts = table.bases.take(refs.segment)
        starts += refs.offset
        if not size:
            return np.empty((len(refs), 0), np.uint8)
        return table.gather(starts, size)

    def checked(self, refs: BlobRefs, size: int) -> CheckedBlobs | None:
        """The blobs of all references of a plan, if most of them were read already; see `can_be_checked`.

        Returns:
            None if they are not in files of this machine, or too few of them were checked.
        """
        verified = None if refs.checksum_cache is None else refs.checksum_cache.verified
        if verified is None or not (verified.complete or 2 * int(verified.done.sum()) >= len(refs)):
            return None
        table = self._tables.known(refs)
        if table is None or not table.local or verified.generation is not table.generation:
            return None
        return CheckedBlobs(refs, table, size, partial(self._check, refs, table, size))

    def _check(self, refs: BlobRefs, table: Table, size: int, rows: Int64s) -> bool:
        """Check those blobs at `rows` that have not been checked yet. Returns whether all can be had from the table."""
        if self._tables.known(refs) is not table:
            return False
        if not refs.checked(table.generation):
            part = refs.take(rows)
            if not part.checked(table.generation):
                _, extra = self._ready(part, size)
                if extra or self._tables.known(refs) is not table:
                    return False
        if table.cached:
            self._use(table, refs.segment[rows])
        return True

    def read(self, refs: BlobRefs, nbytes: int | None = None) -> list[Blob]:
        """The blobs, each decompressed, in order. Their memory may be shared.

        Args:
            refs: the references.
            nbytes: the size to which each that is compressed must expand; None when that is not known.

        Raises:
            CorruptBlobError: stored bytes do not match their checksum or format; `row` says which reference's.
            StorageError: a store cannot be reached or lacks a segment.
        """
        blobs = self._stored(refs)
        if refs.compressed is not None and refs.compressed.any():
            rows = np.flatnonzero(refs.compressed).tolist()
            unpacked = self._frames.decompress(refs, blobs, rows, nbytes)
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

    def foreign(self, refs: BlobRefs) -> list[ForeignBlob | None]:
        """Where blobs are that stay in files of others; None for each blob that is in a store of ours.

        Raises:
            CorruptBlobError: a reference is to what is no blob; `row` says which.
            StorageError: a store lacks a segment.
        """
        found: list[ForeignBlob | None] = [None] * len(refs)
        table = self._tables.table(refs) if len(refs) else None
        for number, rows in groups(refs.segment, np.arange(len(refs))) if table is not None else ():
            segment = table.at(number) if table is not None else None
            if isinstance(segment, ForeignSegment):
                for row, at in zip(rows.tolist(), segment.positions(*_columns(refs, rows), rows).tolist(), strict=True):
                    found[row] = segment.index.blob(at)
        return found

    def missed(self) -> int:
        """How many blobs this thread has fetched from a remote store since the last call."""
        count, self._local.missed = getattr(self._local, "missed", 0), 0
        return count

    def close(self) -> None:
        """Release all mappings and threads. Blobs that `read` returned stay valid."""
        with self._lock:
            self._closed = True
            scouts, self._scouts = self._scouts, None
        if scouts is not None and self._scouts_pid == os.getpid():
            scouts.shutdown(wait=False, cancel_futures=True)
        self._tables.close()
        self._remote.close()

    def _stored(self, refs: BlobRefs) -> list[Blob]:
        """The stored bytes of all references, checked."""
        return self._again(refs, lambda: self._stored_now(refs)) if len(refs) else []

    def _stored_now(self, refs: BlobRefs) -> list[Blob]:
        table, extra = self._ready(refs, None)
        if table.cached:
            self._use(table, refs.segment)
        return _joined(table, refs, extra)

    def _ready(self, refs: BlobRefs, size: int | None) -> tuple[Table, dict[int, memoryview]]:
        """A table through which the references can be read, all of them checked, and by row the stored bytes of those
        blobs that are nowhere but in this process.

        `size` is the length of each, where that is one number.
        """
        ahead, pending = refs.ahead, None
        object.__setattr__(refs, "ahead", None)
        try:
            pending = None if ahead is None else ahead.result()
            pending = pending or self._begin(refs, urgent=True)
            extra: dict[int, memoryview] = {}
            for segment, rows, numbers, futures in pending.wanted:
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
            for reference, rows, numbers in pending.foreign:
                extra.update(reference.read(numbers, rows))
        except concurrent.futures.CancelledError:
            raise StorageError("the blob reader is closed: connect again") from None
        table = pending.table
        if not extra and table.local and table.generation is self._tables.generation:
            refs.set_checked(table.generation, size)
        return table, extra

    def _begin(self, refs: BlobRefs, urgent: bool) -> PendingRead:
        """Open the segments of the references, check blobs that are in local memory, and request the others."""
        table = self._tables.table(refs)
        wanted: list[tuple[OpenSegment, Int64s, Int64s, list[concurrent.futures.Future[Arrival]]]] = []
        foreign: list[tuple[ForeignSegment, Int64s, Int64s]] = []
        if not refs.checked(table.generation):
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
                if isinstance(segment, ForeignSegment):
                    foreign.append((segment, part, at[part]))
                    continue
                dense = self._is_dense(refs, number, segment)
                futures = self._remote.want(segment, np.unique(at[part]), dense, urgent)
                wanted.append((segment, part, at[part], futures))
        if wanted:
            self._known = 0
        return PendingRead(table, wanted, foreign)

    def _is_dense(self, refs: BlobRefs, number: int, segment: OpenSegment) -> bool:
        """Whether the plan that the references are from will want most of a segment, and the cache can hold it all."""
        if refs.checksum_cache is None or self._cache is None or segment.file is None:
            return False
        counts, nbytes = refs.checksum_cache.share()
        count, used = int(counts[number]), float(nbytes[number])
        if not used or segment.end - used > count * max(GAP, used / count / WASTE):
            return False
        return float(nbytes.sum()) * segment.end / used <= _FITS * self._cache.cap

    def _use(self, table: Table, segments: npt.NDArray[np.uint32]) -> None:
        """Note which cached segments are used, so that others are evicted first, and drop removed ones."""
        self._known += 1
        table.used[segments] = True
        now = time.monotonic()
        if now - self._tended < _TEND or self._cache is None:
            return
        self._tended = now
        used = [segment for segment, is_used in zip(table.opened, table.used.tolist(), strict=True) if is_used]
        table.used[:] = False
        self._cache.touch(segment.file for segment in used if segment is not None and segment.file is not None)


def _no_root(name: str) -> Root:
    raise StorageError(f"expected no files of others, found some below the root {name!r}")


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
    """The stored bytes of all references: those in `extra`, by row, and copies of mapped memory."""
    here = np.ones(len(refs), np.bool_)
    here[list(extra)] = False
    here &= table.is_local[refs.segment]  # of others, only empty ones are left
    rows = np.flatnonzero(here)
    ends = np.cumsum(refs.length[rows])
    memory = np.empty(int(ends[-1]) if len(rows) else 0, np.uint8)
    if len(memory):
        table.copy(table.bases[refs.segment[rows]] + refs.offset[rows], refs.length[rows], memory)
    blobs: list[Blob] = [extra.get(row, b"") for row in range(len(refs))]
    for row, start, end in zip(rows.tolist(), (ends - refs.length[rows]).tolist(), ends.tolist(), strict=True):
        blobs[row] = memory.data[start:end]
    return blobs
