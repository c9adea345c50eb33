"""Fetch blobs of remote segments: choose the ranges to request, check the bytes, and put them into the cache."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import partial

import numpy as np
import numpy.typing as npt
import xxhash

from tensordb_data.blobs.reader.cached_file import Claim
from tensordb_data.blobs.reader.disk_cache import SegmentCache
from tensordb_data.blobs.reader.download_pool import REQUEST_COST, Fetcher
from tensordb_data.blobs.reader.open_segment import Bools, Int64s, OpenSegment
from tensordb_data.errors import CorruptBlobError

GAP = 32 << 10
"""Bytes that are read in vain rather than asking a store twice."""

WASTE = 5
"""A gap may also be as large as one part in this many of the blob behind it."""

_PIECE = 8 << 20  # bytes of one range at most, unless a blob is larger: larger ones arrive no faster
_GROWN = 2 * _PIECE  # bytes of a request that grew while it waited
_RANGES = 10  # of one request
_PATIENCE = 10.0  # seconds to wait for what another process has claimed

Run = tuple[int, int]
"""Blobs first..last-1 of a segment, back to back: what one range brings."""


class Arrival:
    """The result of one request, as far as it is not in the cache: the bytes of blobs, and damaged blobs."""

    def __init__(self, segment: OpenSegment) -> None:
        self._segment = segment
        self._kept: list[tuple[int, int, memoryview]] = []
        self.bad: dict[int, CorruptBlobError] = {}
        """Blobs that do not match their checksums, however often they are read."""

    def keep(self, first: int, last: int, data: memoryview) -> None:
        """Hold the bytes of blobs first..last-1; what was kept first counts."""
        self._kept.append((first, last, data))

    def blob(self, number: int) -> memoryview | None:
        """The stored bytes of a blob, if they are here."""
        index = self._segment.index
        assert index is not None
        for first, last, data in self._kept:
            if first <= number < last:
                start = int(index.offsets[number] - index.offsets[first])
                return data[start : start + int(index.lengths[number])]
        return None


class Request:
    """Some ranges of a segment, to which more can be added until it begins."""

    def __init__(self, segment: OpenSegment, number: int, runs: list[Run]) -> None:
        self.segment, self.number, self.runs = segment, number, runs

    def grow(self, runs: Sequence[Run]) -> bool:
        """Take some ranges in, if it does not get too large."""
        joined = list(self.runs)
        for first, last in runs:
            if joined[-1][1] == first and _extent(self.segment, [(joined[-1][0], last)]) <= _GROWN:
                joined[-1] = (joined[-1][0], last)
            else:
                joined.append((first, last))
        if len(joined) > _RANGES or _extent(self.segment, joined) > _GROWN:
            return False
        self.runs = joined
        return True

    def cost(self) -> int:
        """Its bytes, and what the asking costs besides."""
        runs = self.runs
        return _extent(self.segment, runs) + REQUEST_COST * len(runs)


class Remote:
    """Fetches blobs of remote segments, into the cache where there is one.

    Whatever is under way is not asked for again, neither by another thread nor, through the cache, by another process.
    """

    def __init__(self, cache: SegmentCache | None) -> None:
        self.cache = cache
        self.fetcher = Fetcher()
        self._lock = threading.Lock()
        self._number = 0

    def want(self, segment: OpenSegment, numbers: Int64s, dense: bool, urgent: bool) -> list[Future[Arrival]]:
        """Requests that bring some blobs of one segment.

        Args:
            segment: it.
            numbers: the blobs, ascending.
            dense: whether most of its blobs will be wanted: then those beside them are fetched too.
            urgent: whether someone is waiting for them.
        """
        with self._lock:
            under_way = segment.coming[numbers]
            futures = {int(i): segment.requests[int(i)] for i in np.unique(under_way) if i}
            fresh = numbers[(under_way == 0) & (segment.compared[numbers] == 0)]
            if dense and len(fresh):
                fresh = _pieces(segment, fresh)
            for runs in _requests(segment, fresh):
                request: Request | None = None if urgent else segment.waiting
                if request is None or not request.grow(runs):
                    self._number += 1
                    request = Request(segment, self._number, runs)
                    future = self.fetcher.submit(partial(self._bring, request), request.cost, urgent)
                    segment.requests[request.number] = future
                    segment.waiting = segment.waiting if urgent else request
                for first, last in runs:
                    segment.coming[first:last] = request.number
                futures[request.number] = segment.requests[request.number]
            return list(futures.values())

    def close(self) -> None:
        """Begin no further request."""
        self.fetcher.close()

    def _bring(self, request: Request) -> Arrival:
        segment = request.segment
        with self._lock:
            runs = list(request.runs)
            if segment.waiting is request:
                segment.waiting = None
        try:
            arrival = Arrival(segment)
            if segment.file is None or self.cache is None:
                self._fetch(segment, runs, arrival)
            else:
                self._fill(segment, runs, arrival, self.cache)
            return arrival
        finally:
            with self._lock:
                for first, last in runs:
                    segment.coming[first:last] = 0
                del segment.requests[request.number]

    def _fill(self, segment: OpenSegment, runs: Sequence[Run], arrival: Arrival, cache: SegmentCache) -> None:
        """Fetch the blobs that the cache lacks, and wait for those that other processes are fetching."""
        file = segment.file
        assert file is not None
        end, pause = time.monotonic() + _PATIENCE, 0.002
        while runs:
            claim = cache.claim(file)
            if claim is None:
                self._fetch(segment, runs, arrival)
                return
            with claim:
                # After a while without the claim: it may be a process that was stopped, or a disk without locks.
                late = time.monotonic() > end
                mine = [run for run in runs if claim.take(*run) or late]
                missing = [left for run in mine if (left := segment.missing(*run)) is not None]
                if missing:
                    self._fetch(segment, missing, arrival, claim)
            runs = [run for run in runs if run not in mine]
            if runs and self.fetcher.closed.wait(pause):
                return
            pause = min(2 * pause, 0.05)

    def _fetch(self, segment: OpenSegment, runs: Sequence[Run], arrival: Arrival, claim: Claim | None = None) -> None:
        index = segment.index
        assert index is not None
        for (first, last), data in zip(runs, self._read(segment, runs), strict=True):
            good = _digests(segment, first, last, data) == index.checksums[first:last]
            good |= index.lengths[first:last] == 0
            for number in (first + np.flatnonzero(~good)).tolist():
                # What was damaged on its way is well the next time.
                again = self._read(segment, [(number, number + 1)])[0]
                found, expected = int(_digests(segment, number, number + 1, again)[0]), int(index.checksums[number])
                if found == expected:
                    arrival.keep(number, number + 1, again)
                else:
                    arrival.bad[number] = segment.damaged(int(index.offsets[number]), len(again), expected, found)
            if claim is None or not self._store(segment, first, data, good, claim):
                arrival.keep(first, last, data)

    def _store(self, segment: OpenSegment, first: int, data: memoryview, good: Bools, claim: Claim) -> bool:
        index = segment.index
        assert index is not None and self.cache is not None
        begin = int(index.offsets[first])
        with self.cache.admitted(len(data), claim.name) as fits:
            if not fits:
                return False
            try:
                # Damaged bytes must not be written at all: a sound copy may be there, which others have compared.
                for low, high in _runs_of(good):
                    start, end = int(index.offsets[first + low]), _end(segment, first + high - 1)
                    claim.write(start, data[start - begin : end - begin])
                    claim.mark(first + low, first + high)
                    segment.compared[first + low : first + high] = 1
            except OSError as error:
                self.cache.pause(error)
                return False
        return True

    def _read(self, segment: OpenSegment, runs: Sequence[Run]) -> list[memoryview]:
        index = segment.index
        assert index is not None
        offsets = [int(index.offsets[first]) for first, _ in runs]
        lengths = [_end(segment, last - 1) - offset for (_, last), offset in zip(runs, offsets, strict=True)]
        return self.fetcher.retried(lambda: segment.store.get_ranges(segment.key, offsets, lengths))


def _digests(segment: OpenSegment, first: int, last: int, data: memoryview) -> npt.NDArray[np.uint64]:
    """The checksums of the bytes that have arrived for blobs first..last-1."""
    index = segment.index
    assert index is not None
    starts = index.offsets[first:last] - index.offsets[first]
    ends = starts + index.lengths[first:last]
    digest = xxhash.xxh3_64_intdigest
    found = (digest(data[start:end]) for start, end in zip(starts.tolist(), ends.tolist(), strict=True))
    return np.fromiter(found, np.uint64, last - first)


def _runs_of(mask: Bools) -> list[tuple[int, int]]:
    """First and last + 1 position of every run of True."""
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _end(segment: OpenSegment, number: int) -> int:
    assert segment.index is not None
    return int(segment.index.offsets[number] + segment.index.lengths[number])


def _extent(segment: OpenSegment, runs: Sequence[Run]) -> int:
    assert segment.index is not None
    return sum(_end(segment, last - 1) - int(segment.index.offsets[first]) for first, last in runs)


def _pieces(segment: OpenSegment, numbers: Int64s) -> Int64s:
    """Those blobs, and all of the same pieces that are neither there nor under way."""
    assert segment.index is not None
    offsets = segment.index.offsets
    pieces = np.unique(offsets[numbers] // _PIECE)
    wanted = np.zeros(segment.blobs, np.bool_)
    firsts, lasts = np.searchsorted(offsets, pieces * _PIECE), np.searchsorted(offsets, (pieces + 1) * _PIECE)
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        wanted[first:last] = (segment.compared[first:last] == 0) & (segment.coming[first:last] == 0)
        if segment.file is not None:
            wanted[first:last] &= ~segment.file.marked(first, last)
    wanted[numbers] = True
    return np.flatnonzero(wanted)


def _requests(segment: OpenSegment, numbers: Int64s) -> Iterator[list[Run]]:
    """Some blobs, ascending, as ranges; near ones together, and several ranges in a request."""
    if not len(numbers):
        return
    assert segment.index is not None
    starts, lengths = segment.index.offsets[numbers], segment.index.lengths[numbers]
    gaps = starts[1:] - (starts + lengths)[:-1]
    cut = gaps > np.maximum(GAP, lengths[1:] // WASTE)
    begins = starts[np.flatnonzero(np.append(True, cut))][np.append(0, np.cumsum(cut))]
    parts = (starts - begins) // _PIECE
    edges = np.flatnonzero(np.concatenate(([True], cut | (parts[1:] != parts[:-1]), [True])))
    runs: list[Run] = []
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        run = (int(numbers[low]), int(numbers[high - 1]) + 1)
        if runs and (len(runs) == _RANGES or _extent(segment, [*runs, run]) > _PIECE):
            yield runs
            runs = []
        runs.append(run)
    yield runs
