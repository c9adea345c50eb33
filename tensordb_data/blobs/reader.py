"""Reading many blobs at once, from segments of any store."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import threading
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard
from bson import ObjectId

from tensordb_data.blobs.mapping import array_at
from tensordb_data.blobs.opened import Int64s, OpenSegment, Table, at_row
from tensordb_data.blobs.refs import BlobRefs
from tensordb_data.blobs.store import Store
from tensordb_data.errors import CorruptBlobError, StorageError

Blob = memoryview | bytes
Batch = npt.NDArray[np.uint8]

_GAP = 128 << 10  # bytes read in vain rather than asking a remote store twice
_MAX_RANGE = 8 << 20  # so that one large segment arrives over several connections
_MAX_TABLES = 64


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Stored bytes of some rows, within one run of memory."""

    data: memoryview
    rows: Int64s
    starts: Int64s


class BlobReader:
    """Reads blobs by reference. One serves all threads of a process.

    Local segments are mapped into memory, and each of their blobs is compared with its checksum the first time.
    From other stores near ranges are fetched together, several segments at a time, and every blob is compared.

    Args:
        find_segments: the documents of segments, by their ids.
        store: the store of a blob root, by its number.
        max_open: local segments kept mapped.
        max_index_bytes: memory for the indexes of remote segments.
    """

    def __init__(
        self,
        find_segments: Callable[[Sequence[ObjectId]], Sequence[Mapping[str, Any]]],
        store: Callable[[int], Store],
        *,
        max_open: int = 8192,
        max_index_bytes: int = 256 << 20,
    ) -> None:
        self._find_segments = find_segments
        self._store = store
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
            return self._gather_pieces(self._pieces(table, refs), len(refs), size)
        if not known:
            self._check(table, refs, size)
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
        if refs.compressed is not None:
            rows = np.flatnonzero(refs.compressed).tolist()
            for row, blob in zip(rows, self._decompress(refs, blobs, rows), strict=True):
                blobs[row] = blob
        return blobs

    def close(self) -> None:
        """Let all mappings and threads go. Blobs that `read` returned stay valid."""
        with self._lock:
            self._closed = True
            self._opened.clear()
            self._tables.clear()
            pool, self._pool = self._pool, None
        if pool is not None and self._pool_pid == os.getpid():
            pool.shutdown(wait=False, cancel_futures=True)

    def _gather_pieces(self, pieces: Iterable[_Piece], m: int, size: int) -> Batch:
        batch = np.empty((m, size), np.uint8)
        for piece in pieces:
            data = np.frombuffer(piece.data, np.uint8)
            window = np.lib.stride_tricks.as_strided(
                data, (max(len(data) - size + 1, 1), size), (1, 1), writeable=False
            )
            batch[piece.rows] = window[piece.starts]
        return batch

    def _gather_compressed(self, refs: BlobRefs) -> Batch | None:
        stored, m = self._stored(refs), len(refs)
        assert refs.compressed is not None
        rows = np.flatnonzero(refs.compressed).tolist()
        size = self._content_size(refs, stored[rows[0]], rows[0])
        if any(self._content_size(refs, stored[row], row) != size for row in rows):
            return None
        if len(rows) == m:
            return _as_batch(self._decompress(refs, stored, rows), m, size)
        if (refs.length[~refs.compressed] != size).any():
            return None
        batch = np.empty((m, size), np.uint8)
        for row in np.flatnonzero(~refs.compressed).tolist():
            batch[row] = np.frombuffer(stored[row], np.uint8)
        for row, blob in zip(rows, self._decompress(refs, stored, rows), strict=True):
            batch[row] = np.frombuffer(blob, np.uint8)
        return batch

    def _stored(self, refs: BlobRefs) -> list[Blob]:
        blobs: list[Blob] = [b""] * len(refs)
        if len(refs):
            lengths = refs.length.tolist()
            for piece in self._pieces(self._table(refs), refs):
                for row, start in zip(piece.rows.tolist(), piece.starts.tolist(), strict=True):
                    blobs[row] = piece.data[start : start + lengths[row]]
        return blobs

    def _pieces(self, table: Table, refs: BlobRefs) -> list[_Piece]:
        """The stored bytes of all references, compared with their checksums."""
        rows = np.arange(len(refs))
        local = rows[table.is_local[refs.segment]]
        pieces = []
        if len(local):
            self._check(table, refs.take(local), rows=local)
            for number, group in table.groups(refs.segment, local):
                mapped = _opened(table, number).mapped
                assert mapped is not None
                pieces.append(_Piece(mapped.data, group, refs.offset[group]))
        if len(local) < len(refs):
            groups = table.groups(refs.segment, rows[~table.is_local[refs.segment]])
            pieces += self._each(lambda group: self._fetch(_opened(table, group[0]), refs, group[1]), groups)
        return pieces

    def _fetch(self, segment: OpenSegment, refs: BlobRefs, rows: Int64s) -> list[_Piece]:
        rows = rows[np.argsort(refs.offset[rows], kind="stable")]
        starts, lengths = refs.offset[rows], refs.length[rows]
        compressed = None if refs.compressed is None else refs.compressed[rows]
        checksums = segment.check(starts, lengths, compressed, rows)
        cuts = _runs(starts, starts + lengths)
        froms = starts[cuts[:-1]]
        ends = np.maximum.reduceat(starts + lengths, cuts[:-1])
        try:
            chunks = segment.store.get_ranges(segment.key, froms.tolist(), (ends - froms).tolist())
        except StorageError as error:
            raise at_row(error, int(rows[0])) from error
        pieces = []
        for i, chunk in enumerate(chunks):
            within = slice(cuts[i], cuts[i + 1])
            piece = _Piece(chunk, rows[within], starts[within] - froms[i])
            some = zip(piece.starts.tolist(), lengths[within].tolist(), checksums[within].tolist(), strict=True)
            for row, (start, length, checksum) in zip(piece.rows.tolist(), some, strict=True):
                segment.compare(chunk[start : start + length], checksum, int(froms[i]) + start, row)
            pieces.append(piece)
        return pieces

    def _check(self, table: Table, refs: BlobRefs, size: int | None = None, rows: Int64s | None = None) -> None:
        """Check local blobs that have not been: that they are inside their segment, and match their checksums."""
        if refs.checked:
            return
        slack = table.ends[refs.segment] - refs.length - refs.offset
        wrong = (slack < 0) | (refs.offset < 0) | (refs.length < 0)
        if wrong.any():
            i = int(np.argmax(wrong))
            found = _opened(table, int(refs.segment[i]))
            error = CorruptBlobError(
                f"{found.name}: expected a blob within {found.end} bytes, found a reference to "
                f"{int(refs.length[i])} bytes at {int(refs.offset[i])}"
            )
            raise at_row(error, i if rows is None else int(rows[i]))
        todo = np.flatnonzero(~table.verified[refs.segment])
        for number, group in table.groups(refs.segment, todo):
            found = _opened(table, number)
            compressed = None if refs.compressed is None else refs.compressed[group]
            found.verify(refs.offset[group], refs.length[group], compressed, group if rows is None else rows[group])
            table.verified[number] = found.verified
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

        return self._each(work, numbers)

    def _make_room(self, keep: Container[ObjectId]) -> None:
        """Forget those opened longest ago. Mappings in use live on in the tables and views that use them."""
        mapped = sum(segment.mapped is not None for segment in self._opened.values())
        indexes = sum(segment.index_bytes for segment in self._opened.values() if segment.mapped is None)
        for id, segment in list(self._opened.items()):
            local = segment.mapped is not None
            if id not in keep and (mapped > self._max_open if local else indexes > self._max_index_bytes):
                del self._opened[id]
                self._tables.clear()
                mapped -= local
                indexes -= 0 if local else segment.index_bytes

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

    def _decompress(self, refs: BlobRefs, stored: Sequence[Blob], rows: Sequence[int]) -> Sequence[Any]:
        decompressor = getattr(self._local, "decompressor", None)
        if decompressor is None:
            decompressor = self._local.decompressor = zstandard.ZstdDecompressor()
        if not rows:
            return []
        try:
            # One call for all: it holds the GIL only before and after.
            found = decompressor.multi_decompress_to_buffer([stored[row] for row in rows])
            return [memoryview(found[i]) for i in range(len(rows))]  # type: ignore[arg-type]
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


def _as_batch(blobs: Sequence[memoryview], m: int, size: int) -> Batch:
    """Decompressed blobs of one size as one array; without a copy where they lie back to back already."""
    if size == 0:
        return np.empty((m, 0), np.uint8)
    addresses = [np.frombuffer(blob, np.uint8).ctypes.data for blob in blobs]
    if addresses == list(range(addresses[0], addresses[0] + m * size, size)):
        return array_at(addresses[0], m * size, blobs).reshape(m, size)
    batch = np.empty((m, size), np.uint8)
    for row, blob in enumerate(blobs):
        batch[row] = np.frombuffer(blob, np.uint8)
    return batch


def _opened(table: Table, number: int) -> OpenSegment:
    found = table.opened[number]
    assert found is not None
    return found


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
