"""Decompress blobs that are zstd frames, and report those that are damaged."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from tensordb_data.blobs.segments.references import BlobRefs, at_row
from tensordb_data.common import buffer_pool
from tensordb_data.common.system.mmap import array_at
from tensordb_data.common.zstd import MAX_EXPANDED, decompressor, expanded_size
from tensordb_data.errors import CorruptBlobError, StorageError

Blob = memoryview | bytes
Batch = npt.NDArray[np.uint8]

_LARGE = 16 << 10  # bytes from which a frame is worth a call of its own


class Frames:
    """Decompresses. One serves all threads of a process."""

    def __init__(self) -> None:
        self._local = threading.local()

    def gather(self, refs: BlobRefs, stored: Sequence[Blob], nbytes: int | None = None) -> Batch | None:
        """Blobs, some of them compressed, as one new array uint8[m, size], or None when their sizes differ.

        Args:
            refs: the references.
            stored: the stored bytes of each.
            nbytes: the size that each must have; a frame that claims another is not expanded.

        Raises:
            CorruptBlobError: what should be a frame is none, or one of another size; `row` says which reference's.
        """
        assert refs.compressed is not None
        rows, plain = np.flatnonzero(refs.compressed).tolist(), np.flatnonzero(~refs.compressed).tolist()
        size = self._content_size(refs, stored[rows[0]], rows[0]) if nbytes is None else nbytes
        if any(self._content_size(refs, stored[row], row, nbytes) != size for row in rows):
            return None
        if any(len(stored[row]) != size for row in plain):
            return None
        if not plain and size < _LARGE:
            return _as_batch(self._expand(refs, stored, rows), size)
        batch = buffer_pool.empty((len(refs), size), np.uint8)
        if size < _LARGE:
            batch[rows] = _as_batch(self._expand(refs, stored, rows), size)
        else:
            self._decompress_into(batch, refs, stored, rows)
        for row in plain:
            batch[row] = np.frombuffer(stored[row], np.uint8)
        return batch

    def decompress(self, refs: BlobRefs, stored: Sequence[Blob], rows: Sequence[int], nbytes: int | None = None) -> Any:
        """Those rows decompressed, as a sequence of buffers.

        Args:
            refs: the references.
            stored: the stored bytes of each.
            rows: which of them.
            nbytes: the size that each must have; None for any up to `MAX_EXPANDED`.

        Raises:
            CorruptBlobError: what should be a frame is none, or one of another size; `row` says which reference's.
        """
        for row in rows:
            self._content_size(refs, stored[row], row, nbytes)
        return self._expand(refs, stored, rows)

    def _expand(self, refs: BlobRefs, stored: Sequence[Blob], rows: Sequence[int]) -> Any:
        own = self._decompressor()
        try:
            # One call for all: it holds the GIL only before and after.
            return own.multi_decompress_to_buffer([stored[row] for row in rows])
        except MemoryError:
            total = sum(zstandard.frame_content_size(stored[row]) for row in rows)
            raise StorageError(
                f"{len(rows)} blobs expand to {total:,} bytes, for which there is no memory: read fewer at a time"
            ) from None
        except (zstandard.ZstdError, ValueError) as error:
            for row in rows:
                try:
                    own.decompress(stored[row])
                except zstandard.ZstdError as reason:
                    raise self._bad_frame(refs, row, reason) from None
            raise CorruptBlobError(f"expected zstd frames, found others: {error}") from None

    def _content_size(self, refs: BlobRefs, stored: Blob, row: int, nbytes: int | None = None) -> int:
        try:
            size = expanded_size(stored, MAX_EXPANDED if nbytes is None else nbytes)
            if nbytes is not None and size != nbytes:
                raise zstandard.ZstdError(f"expected a frame of {nbytes:,} bytes, found one that claims {size:,}")
            return size
        except zstandard.ZstdError as error:
            raise self._bad_frame(refs, row, error) from None

    def _decompressor(self) -> zstandard.ZstdDecompressor:
        """This thread's own."""
        found = getattr(self._local, "decompressor", None)
        if found is None:
            found = self._local.decompressor = decompressor()
        return found

    def _decompress_into(self, batch: Batch, refs: BlobRefs, stored: Sequence[Blob], rows: Sequence[int]) -> None:
        """Those rows decompressed into their places: into memory that numpy takes in huge pages and uses again."""
        own = self._decompressor()
        for row in rows:
            try:
                # All of the frame is here, and all of its room: the library then does it in one go.
                count = own.stream_reader(stored[row]).readinto(batch[row])
            except zstandard.ZstdError as error:
                raise self._bad_frame(refs, row, error) from None
            if count != batch.shape[1]:
                raise self._bad_frame(refs, row, f"it ends after {count} of {batch.shape[1]} bytes")

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
    batch = buffer_pool.empty((m, size), np.uint8)
    for row in range(m):
        batch[row] = np.frombuffer(blobs[row], np.uint8)  # type: ignore[call-overload]
    return batch
