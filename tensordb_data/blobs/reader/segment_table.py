"""The segments that a batch refers to, as one address space in which all of it is looked up at once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from bson import ObjectId

from tensordb_data.blobs.reader.open_segment import Bools, CutShortError, Int64s, OpenSegment, is_wrong
from tensordb_data.blobs.segments.format import MAGIC
from tensordb_data.blobs.segments.references import BlobRefs
from tensordb_data.common import buffer_pool
from tensordb_data.common.chunks import runs_by_size
from tensordb_data.common.system.leases import Lease
from tensordb_data.common.system.mmap import Bytes1D, UnmappedError, copy_runs

Bytes2D = np.ndarray[tuple[int, int], np.dtype[np.uint8]]
Runs = np.ndarray[tuple[int], np.dtype[np.void]]

_ROUND = 16 << 20  # bytes copied at once, to be compared with their checksums
_LARGE = 16 << 10  # bytes from which a copy is worth a call of its own; numpy cannot count windows of many times more
_LEASED = 64  # segments of a table, above which a look at each lease takes longer than it saves


class Table:
    """The open segments of one tuple of segment ids, as columns that a batch is looked up in.

    All mapped memory is one address space, counted from the lowest address: whatever the number of segments, a batch
    is then one gather, and so is each step of its checks. A table never changes and holds what it refers to.
    """

    def __init__(self, ids: tuple[ObjectId, ...], opened: Mapping[ObjectId, OpenSegment], generation: object) -> None:
        self.ids = ids
        self.generation = generation
        """A check through one table holds for all tables of the same generation."""
        self.opened = [opened.get(id) for id in ids]
        self.is_open: Bools = np.array([s is not None for s in self.opened], np.bool_)
        self.complete = bool(self.is_open.all())
        self.is_local: Bools = np.array([s is not None and s.mapped is not None for s in self.opened], np.bool_)
        self.local = not (self.is_open & ~self.is_local).any()
        self.used: Bools = np.zeros(len(ids), np.bool_)
        """Which cached segments were used since the last note of it."""
        self.bases: Int64s = np.zeros(len(ids), np.int64)
        self.ends: Int64s = np.zeros(len(ids), np.int64)
        self._blobs: Int64s = np.zeros(len(ids), np.int64)
        self._indexes: Int64s = np.zeros(len(ids), np.int64)
        self._compared: Int64s = np.zeros(len(ids), np.int64)
        self._marks: Int64s = np.zeros(len(ids), np.int64)
        self._is_cached: Bools = np.array([s is not None and s.file is not None for s in self.opened], np.bool_)
        self.cached = bool(self._is_cached.any())
        self._lowest: Bytes1D | None = None
        self._span = 0
        self._windows: dict[int, Runs] = {}
        self._leases: list[Lease] | None = None
        """The leases of all segments that are mapped; None if one of them has none."""
        self._map()

    def _map(self) -> None:
        spaces: list[Bytes1D] = []
        for i, segment in enumerate(self.opened):
            if segment is None or segment.mapped is None:
                continue
            spaces += [segment.mapped, segment.compared] if segment.blobs else [segment.mapped]
            self.bases[i] = segment.mapped.ctypes.data
            self.ends[i] = segment.end
            self._blobs[i] = segment.blobs
            self._indexes[i] = self.bases[i] + segment.index_start
            self._compared[i] = segment.compared.ctypes.data
            if segment.file is not None and segment.blobs:
                spaces.append(segment.file.marks)
                self._marks[i] = segment.file.marks.ctypes.data
        if spaces:
            self._lowest = min(spaces, key=lambda space: space.ctypes.data)
            low = self._lowest.ctypes.data
            self._span = max(space.ctypes.data + len(space) for space in spaces) - low
            leases = [s.lease for s in self.opened if s is not None and s.mapped is not None]
            if len(leases) <= _LEASED and None not in leases:
                self._leases = [lease for lease in leases if lease is not None]
            for column in (self.bases, self._indexes, self._compared, self._marks):
                column -= low

    def gather(self, starts: Int64s, size: int) -> Bytes2D:
        """The runs of `size` (> 0) bytes that begin at some addresses, as a new array uint8[m, size]."""
        held: list[Lease] = []
        try:
            # While all leases are held, mapped memory can be read as it is.
            for lease in self._leases or ():
                if not lease.hold():
                    break
                held.append(lease)
            if held and len(held) == len(self._leases or ()):
                return self._gather(starts, size)
        finally:
            for lease in held:
                lease.let_go()
        batch = buffer_pool.empty((len(starts), size), np.uint8)
        self.copy(starts, size, batch.reshape(-1))
        return batch

    def _gather(self, starts: Int64s, size: int) -> Bytes2D:
        if size < _LARGE:
            return self._window(size)[starts].view(np.uint8).reshape(len(starts), size)
        space, batch = self._window(1).view(np.uint8), buffer_pool.empty((len(starts), size), np.uint8)
        for row, start in zip(batch, starts.tolist(), strict=True):
            np.copyto(row, space[start : start + size])
        return batch

    def _window(self, size: int) -> Runs:
        """The address space as an array of every run of `size` (> 0) bytes in it, each run one opaque value: of these
        numpy copies a third more in the same time than of rows of bytes.

        Most of them are not memory of ours: index it only with addresses that were checked.
        """
        found = self._windows.get(size)
        if found is None:
            if self._lowest is None:
                raise ValueError("expected a table with a local segment, found none")
            as_strided = np.lib.stride_tricks.as_strided
            first = as_strided(self._lowest, (1, size), (1, 1)).view(np.dtype((np.void, size)))[0]
            found = as_strided(first, (max(self._span - size + 1, 0),), (1,), writeable=False)
            if len(self._windows) > 64:
                self._windows.clear()
            self._windows[size] = found
        return found

    def copy(self, starts: Int64s, lengths: Int64s | int, out: Bytes1D) -> None:
        """Copy the runs that begin at some addresses into `out`, back to back.

        Raises:
            CutShortError: a file does not have some of them any more.
        """
        if self._lowest is None:
            raise ValueError("expected a table with a local segment, found none")
        try:
            copy_runs(starts + self._lowest.ctypes.data, lengths, out)
        except UnmappedError as error:
            for segment in self.opened:
                if segment is not None and segment.holds(error.address):
                    raise CutShortError(segment) from None
            raise

    def verify(self, refs: BlobRefs, rows: Int64s) -> tuple[Int64s, Int64s]:
        """Check references to mapped blobs: that there are such blobs, and that each matches its checksum.

        A blob is compared with its checksum once, as long as its segment stays open.

        Args:
            refs: the references.
            rows: which of them, and how errors call them.

        Returns:
            Those rows whose blobs the cache does not have, and the numbers of these blobs in their segments.
        """
        segment, offset, length = refs.segment[rows].astype(np.intp), refs.offset[rows], refs.length[rows]
        packed = np.zeros(len(rows), np.bool_) if refs.compressed is None else refs.compressed[rows]
        index, blobs = self._indexes[segment], self._blobs[segment]
        # Where all blobs of a segment have one size, it says which one this is.
        at = np.minimum((offset - len(MAGIC)) // np.maximum(length, 1), blobs - 1)
        start, end = self._bounds(index, blobs, at, segment)
        other = np.flatnonzero((start != offset) | (end - start != length))
        if len(other):
            at[other] = self._search(index[other], blobs[other], offset[other])
            start[other], end[other] = self._bounds(index[other], blobs[other], at[other], segment[other])
        inside = np.maximum(at, 0)
        flag = self._bytes(index + 16 * blobs + inside) != 0
        wrong = is_wrong(at, (start, end - start, flag), (offset, length, packed)) | (blobs == 0)
        if wrong.any():
            one = int(np.argmax(wrong))
            self.at(segment[one]).refuse(offset, length, wrong, rows)
        # An empty blob has its place in common with the next one, which it says nothing about.
        fresh = np.flatnonzero((self._bytes(self._compared[segment] + inside) == 0) & (length > 0))
        cached = fresh[self._is_cached[segment[fresh]]]
        absent = cached[self._bytes(self._marks[segment[cached]] + inside[cached]) == 0]
        if len(absent) == len(fresh):
            return rows[absent], at[absent]
        there = np.setdiff1d(fresh, absent, assume_unique=True)
        checksums = self._int64s(index[there] + 8 * (blobs + inside)[there]).view(np.uint64)
        columns = (segment[there], at[there], offset[there], length[there], checksums, rows[there])
        damaged = []
        blobs_of = zip(there.tolist(), *(column.tolist() for column in columns), strict=True)
        for low, high in runs_by_size(length[there].tolist(), _ROUND):
            some, at_once = there[low:high], 0
            memory = np.empty(int(length[some].sum()), np.uint8)
            self.copy(self.bases[segment[some]] + offset[some], length[some], memory)
            for i, number, blob, start, size, checksum, row in itertools.islice(blobs_of, high - low):
                data = memory.data[at_once : at_once + size]
                at_once += size
                if not self.at(number).compare(blob, start, size, checksum, row, data):
                    damaged.append(i)
        absent = np.append(absent, np.array(damaged, np.int64))
        return rows[absent], at[absent]

    def at(self, number: int) -> OpenSegment:
        """The open segment of that number."""
        found = self.opened[number]
        assert found is not None
        return found

    def _bounds(self, index: Int64s, blobs: Int64s, at: Int64s, segment: Int64s) -> tuple[Int64s, Int64s]:
        """Where the blobs `at` their places begin and end."""
        inside = np.maximum(at, 0)
        last = inside + 1 >= blobs
        end = np.where(last, self.ends[segment], self._int64s(index + 8 * np.where(last, 0, inside + 1)))
        return self._int64s(index + 8 * inside), end

    def _search(self, index: Int64s, blobs: Int64s, offset: Int64s) -> Int64s:
        """The last blob of each row's segment that begins at or before `offset`, or -1: a binary search in all."""
        low, high = np.zeros_like(blobs), blobs.copy()
        for _ in range(int(blobs.max()).bit_length()):
            middle = (low + high) >> 1
            # Where the search has ended, `middle` may be one past the last: that reads the next column, and is unused.
            right = (self._int64s(index + 8 * middle) <= offset) & (low < high)
            low = np.where(right, middle + 1, low)
            high = np.where(right, high, np.minimum(middle, high))
        return low - 1

    def _bytes(self, addresses: Int64s) -> npt.NDArray[np.uint8]:
        return self.gather(addresses, 1).reshape(-1)

    def _int64s(self, addresses: Int64s) -> Int64s:
        return self.gather(addresses, 8).reshape(-1).view("<i8")


def groups(segment: npt.NDArray[np.uint32], rows: Int64s) -> Sequence[tuple[int, Int64s]]:
    """Those of the given rows that lie in each segment, in order."""
    of = segment[rows]
    order = np.argsort(of, kind="stable")
    rows, of = rows[order], of[order]
    cuts = np.flatnonzero(of[1:] != of[:-1]) + 1
    starts = [0, *cuts.tolist()] if len(rows) else []
    return [(int(of[s]), part) for s, part in zip(starts, np.split(rows, cuts), strict=bool(starts))]
