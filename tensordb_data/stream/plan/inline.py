"""InlineBlobs: blobs that are in the documents of their samples. A plan does not hold them: they are read by `_id`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensordb_data.blobs.segments.inline import INLINE, check_inline, unpacked
from tensordb_data.blobs.segments.references import BlobRefs
from tensordb_data.common.zstd import MAX_EXPANDED
from tensordb_data.errors import CorruptBlobError


@dataclass(frozen=True)
class InlineBlobs:
    """The stored bytes of the inline blobs of one field, for m samples. Some of the samples may have segment blobs.

    Attributes:
        data: uint8 [m, size], or an object array [m] of bytes; None if the bytes were not read yet.
        checksum: int64 [m]; None if the bytes were not read yet.
    """

    data: NDArray[Any] | None = None
    checksum: NDArray[np.int64] | None = None

    def take(self, rows: NDArray[np.int64]) -> InlineBlobs:
        """The blobs of the samples at `rows`."""
        if self.data is None or self.checksum is None:
            return self
        return InlineBlobs(self.data[rows], self.checksum[rows])


def inline_rows(refs: BlobRefs) -> NDArray[np.bool_]:
    """Which references are to inline blobs: bool [m]."""
    if INLINE not in refs.segments:
        return np.zeros(len(refs), np.bool_)
    found: NDArray[np.bool_] = (refs.segment == refs.segments.index(INLINE)) & (refs.length >= 0)
    return found


def gather_inline(refs: BlobRefs, inline: InlineBlobs, rows: NDArray[np.int64], size: int) -> NDArray[np.uint8] | None:
    """Verify the inline blobs at `rows`, and put them into one array: uint8 [len(rows), size].

    Returns:
        The array; None if a blob has another size.

    Raises:
        CorruptBlobError: A blob is damaged; `row` says which.
    """
    data = inline.data
    if refs.compressed is None and data is not None and data.dtype != object:
        _compare(data, inline, rows)
        return data[rows] if data.shape[1] == size else None
    blobs = read_inline(refs, inline, rows, size)
    if any(len(blob) != size for blob in blobs):
        return None
    return np.frombuffer(bytearray().join(blobs), np.uint8).reshape(len(rows), size)


def read_inline(refs: BlobRefs, inline: InlineBlobs, rows: NDArray[np.int64], limit: int = MAX_EXPANDED) -> list[bytes]:
    """Verify and decompress the inline blobs at `rows`.

    Raises:
        CorruptBlobError: A blob is damaged, or expands to more than `limit` bytes; `row` says which.
    """
    data = inline.data
    assert data is not None
    _compare(data, inline, rows)
    blobs: list[bytes] = [bytes(data[row]) for row in rows]
    if refs.compressed is not None:
        for at in np.flatnonzero(refs.compressed[rows]).tolist():
            try:
                blobs[at] = unpacked(blobs[at], limit)
            except CorruptBlobError as error:
                error.row = int(rows[at])
                raise
    return blobs


def _compare(data: NDArray[Any], inline: InlineBlobs, rows: NDArray[np.int64]) -> None:
    assert inline.checksum is not None
    for row, expected in zip(rows.tolist(), inline.checksum[rows].tolist(), strict=True):
        try:
            check_inline(data[row], expected)
        except CorruptBlobError as error:
            error.row = row
            raise


def replace_references(
    refs: BlobRefs, rows: NDArray[np.int64], parts: Sequence[Mapping[str, Any]]
) -> tuple[BlobRefs, InlineBlobs]:
    """Replace the references at `rows` by those in `parts`. Returns all references, and the inline blobs in `parts`."""
    new = BlobRefs.from_docs(parts)
    numbers = {id_: number for number, id_ in enumerate(refs.segments)}
    renumbered = np.array([numbers.setdefault(id_, len(numbers)) for id_ in new.segments], np.uint32)
    segment, offset, length = refs.segment.copy(), refs.offset.astype(np.int64), np.array(refs.length)
    segment[rows], offset[rows], length[rows] = renumbered[new.segment], new.offset, new.length
    compressed = refs.compressed
    if new.compressed is not None:
        compressed = np.zeros(len(refs), np.bool_) if compressed is None else compressed.copy()
        compressed[rows] = new.compressed
    data, checksum = np.full(len(refs), None, object), np.zeros(len(refs), np.int64)
    for row, part in zip(rows.tolist(), parts, strict=True):
        if "d" in part:
            data[row], checksum[row] = part["d"], _checksum(part)
    return BlobRefs(tuple(numbers), segment, offset, length, compressed), InlineBlobs(data, checksum)


def _checksum(part: Mapping[str, Any]) -> int:
    """That of an inline blob; 0, which is hardly right, where the document has none that could be."""
    found = part.get("x", 0)
    return found if isinstance(found, int) and -(2**63) <= found < 2**63 else 0


def inline_from_docs(found: Sequence[Mapping[str, Any] | None]) -> InlineBlobs | None:
    """The inline blobs in the references of some documents; None if no blob is inline."""
    if not any(part is not None and "k" not in part for part in found):
        return None
    if not all(part is None or "k" in part or "d" in part for part in found):
        return InlineBlobs()
    data = np.full(len(found), None, object)
    data[:] = [None if part is None else part.get("d") for part in found]
    checksum = [0 if part is None else _checksum(part) for part in found]
    return InlineBlobs(data, np.array(checksum, np.int64))
