"""Segments that a reader has opened: their index, and which of their blobs have been checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from bson import ObjectId

from tensordb_data.blobs.mapping import Bytes1D, map_file
from tensordb_data.blobs.segments import (
    MAGIC,
    TRAILER_BYTES,
    SegmentIndex,
    Trailer,
    check_magic,
    read_index,
    read_trailer,
)
from tensordb_data.blobs.store import Store
from tensordb_data.errors import CorruptBlobError, StorageError

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class OpenSegment:
    """One segment with its index, checked against its checksums.

    Args:
        doc: its document in the `segments` collection.
        store: the store that has it.

    Raises:
        CorruptBlobError: the object is not the segment that the document describes.
        StorageError: the store does not have it, or cannot be reached.
    """

    def __init__(self, doc: Mapping[str, Any], store: Store) -> None:
        self.id: ObjectId = doc["_id"]
        self.key: str = doc["key"]
        self.store = store
        self.nbytes = int(doc["bytes"])
        self.name = f"segment {self.id} ({store.url}/{self.key})"
        self.mapped: Bytes1D | None = None
        path = store.local_path(self.key)
        if path is not None:
            self.mapped = self._map(path)
            trailer, index = self._describe(self.mapped.data)
        else:
            start = int(doc["index"][0])
            if not 0 <= start <= self.nbytes:
                raise CorruptBlobError(
                    f"{self.name}: expected an index within {self.nbytes} bytes, found one at {start}"
                )
            size = store.size(self.key)
            self._check_size(size)
            trailer, index = self._describe(store.get_ranges(self.key, [start], [size - start])[0])
        self.end = trailer.documents[0]
        self.index_bytes = 25 * len(index.lengths)
        self._index: SegmentIndex | None = index
        self._checked: Bools = np.zeros(len(index.lengths), np.bool_)
        self.verified = False

    def check(self, offsets: Int64s, lengths: Int64s, compressed: Bools | None, rows: Int64s) -> npt.NDArray[np.uint64]:
        """Refuse references to what is no blob of this segment.

        Returns:
            The checksum of each blob.
        """
        index = self._index
        if index is None:
            return np.zeros(0, np.uint64)
        at = self._positions(index, offsets, lengths, compressed, rows)
        return index.checksums[at]

    def verify(self, offsets: Int64s, lengths: Int64s, compressed: Bools | None, rows: Int64s) -> None:
        """Compare mapped blobs with their checksums, those that no call has compared before."""
        index, mapped = self._index, self.mapped
        if index is None or mapped is None:
            return
        at = self._positions(index, offsets, lengths, compressed, rows)
        fresh = np.flatnonzero(~self._checked[at])
        view = mapped.data
        for i, position in zip(fresh.tolist(), at[fresh].tolist(), strict=True):
            start = int(offsets[i])
            self.compare(view[start : start + int(lengths[i])], int(index.checksums[position]), start, int(rows[i]))
        self._checked[at[fresh]] = True
        if self._checked.all():
            self.verified = True
            self._index = None  # nothing more to compare: let its memory go

    def compare(self, stored: memoryview, checksum: int, offset: int, row: int) -> None:
        """Compare one blob with its checksum."""
        found = xxhash.xxh3_64_intdigest(stored)
        if found != checksum and len(stored):
            raise at_row(
                CorruptBlobError(
                    f"{self.name}: the {len(stored)} bytes at {offset} do not match their checksum "
                    f"(expected {checksum:016x}, found {found:016x}): the stored blob is damaged"
                ),
                row,
            )

    def _positions(
        self, index: SegmentIndex, offsets: Int64s, lengths: Int64s, compressed: Bools | None, rows: Int64s
    ) -> npt.NDArray[np.intp]:
        at = np.searchsorted(index.offsets, offsets, "right") - 1
        if len(index.offsets) == 0:
            wrong = np.ones(len(offsets), np.bool_)
        else:
            packed = np.zeros(len(offsets), np.bool_) if compressed is None else compressed
            # An empty blob shares its offset with the one after it: there is nothing in it to compare.
            wrong = (at < 0) | (index.offsets[at] != offsets)
            wrong |= (lengths != 0) & ((index.lengths[at] != lengths) | (index.compressed[at] != packed))
        if wrong.any():
            i = int(np.argmax(wrong))
            raise at_row(
                CorruptBlobError(
                    f"{self.name}: expected a blob of {int(lengths[i])} bytes at {int(offsets[i])}, found none: "
                    "the reference does not belong to this segment"
                ),
                int(rows[i]),
            )
        return at

    def _describe(self, tail: memoryview) -> tuple[Trailer, SegmentIndex]:
        trailer = read_trailer(tail, self.nbytes, self.name)
        at, length = trailer.index
        start = at - (self.nbytes - len(tail))
        if start < 0:
            raise CorruptBlobError(f"{self.name}: expected its index at {self.nbytes - len(tail)}, found it at {at}")
        return trailer, read_index(tail[start : start + length], trailer, self.name)

    def _map(self, path: Any) -> Bytes1D:
        try:
            self._check_size(path.stat().st_size)
            mapped = map_file(path, self.nbytes)
        except StorageError:
            raise
        except FileNotFoundError:
            raise StorageError(
                f"{self.name}: expected a file at {path}, found none: was it deleted or moved?"
            ) from None
        except OSError as error:
            raise StorageError(f"{self.name}: cannot read {path}: {error.strerror}") from error
        check_magic(mapped[: len(MAGIC)].data, self.name)
        return mapped

    def _check_size(self, size: int) -> None:
        if size != self.nbytes or size < len(MAGIC) + TRAILER_BYTES:
            raise CorruptBlobError(f"{self.name}: expected {self.nbytes} bytes, found {size}: cut off or replaced")


class Table:
    """The open segments of one tuple of segment ids, as columns that a batch is looked up in.

    A table never changes, but for `verified`, so whoever holds it may read from its mappings.
    """

    def __init__(self, ids: tuple[ObjectId, ...], opened: Mapping[ObjectId, OpenSegment]) -> None:
        self.ids = ids
        self.opened = [opened.get(id) for id in ids]
        mapped = [None if s is None else s.mapped for s in self.opened]
        addresses = [0 if m is None else m.ctypes.data for m in mapped]
        self.is_open: Bools = np.array([s is not None for s in self.opened], np.bool_)
        self.complete = bool(self.is_open.all())
        self.is_local: Bools = np.array([m is not None for m in mapped], np.bool_)
        self.local = not (self.is_open & ~self.is_local).any()
        self.ends: Int64s = np.array([0 if s is None else s.end for s in self.opened], np.int64)
        self.verified: Bools = np.array([s is not None and s.verified for s in self.opened], np.bool_)
        at = [i for i, m in enumerate(mapped) if m is not None]
        low = min(at, key=addresses.__getitem__, default=-1)
        self._lowest = mapped[low] if at else None
        base = addresses[low] if at else 0
        self.bases: Int64s = np.array([a - base for a in addresses], np.int64)
        self._span = (
            max((a + len(m) for a, m in zip(addresses, mapped, strict=True) if m is not None), default=0) - base
        )
        self._windows: dict[int, Bytes1D] = {}

    def window(self, size: int) -> Bytes1D:
        """All mappings as one array of every run of `size` bytes, counted from the lowest address.

        Most of its rows are not memory of ours: index it only with bases + offsets that were checked. One gather
        then reads from any number of segments.
        """
        found = self._windows.get(size)
        if found is None:
            if self._lowest is None:
                raise ValueError("expected a table with a local segment, found none")
            shape = (max(self._span - size + 1, 0), size)
            found = np.lib.stride_tricks.as_strided(self._lowest, shape, (1, 1), writeable=False)
            if len(self._windows) > 64:
                self._windows.clear()
            self._windows[size] = found
        return found

    def groups(self, segment: npt.NDArray[np.uint32], rows: Int64s) -> Sequence[tuple[int, Int64s]]:
        """Those of the given rows that lie in each segment, in order."""
        of = segment[rows]
        order = np.argsort(of, kind="stable")
        rows, of = rows[order], of[order]
        cuts = np.flatnonzero(of[1:] != of[:-1]) + 1
        starts = [0, *cuts.tolist()] if len(rows) else []
        return [(int(of[s]), part) for s, part in zip(starts, np.split(rows, cuts), strict=bool(starts))]


def at_row(error: StorageError, row: int) -> StorageError:
    """The error, with the position in the references that were read."""
    error.row = row
    return error
