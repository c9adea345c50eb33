"""Blobs of segments that are not files of this machine: what is asked of the stores, and what becomes of the answers."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial

import numpy as np
import xxhash

from tensordb_data.blobs.cache import SegmentCache, runs_of
from tensordb_data.blobs.fetch import REQUEST_COST, Fetcher
from tensordb_data.blobs.opened import Bools, Int64s, OpenSegment
from tensordb_data.blobs.store import TransientError
from tensordb_data.errors import CorruptBlobError

GAP = 32 << 10
"""Bytes that are read in vain rather than asking a store twice."""

_WASTE = 5  # or one part in this many of what is read
_PIECE = 8 << 20  # bytes of one range at most, unless a blob is larger: larger ones arrive no faster
_RANGES = 10  # of one request
_ATTEMPTS = 3
_BACKOFF = 0.2  # seconds, at most, before the second attempt
_PATIENCE = 10.0  # seconds to wait for what another process says that it is fetching

Run = tuple[int, int]
"""Blobs first..last-1 of a segment, back to back: what one range brings."""


class Arrival:
    """What one request brought: blobs that are now in the cache, others that are only here, and damaged ones."""

    def __init__(self, segment: OpenSegment) -> None:
        self._segment = segment
        self._kept: list[tuple[int, int, memoryview]] = []
        self.bad: dict[int, CorruptBlobError] = {}

    def keep(self, first: int, last: int, data: memoryview) -> None:
        """Hold the bytes of blobs first..last-1 here, as the cache does not."""
        self._kept.append((first, last, data))

    def blob(self, number: int) -> memoryview | None:
        """The stored bytes of a blob that is only here.

        Raises:
            CorruptBlobError: it is damaged.
        """
        if number in self.bad:
            raise self.bad[number]
        index = self._segment.index
        assert index is not None
        for first, last, data in self._kept:
            if first <= number < last:
                start = int(index.offsets[number] - index.offsets[first])
                return data[start : start + int(index.lengths[number])]
        return None


class Remote:
    """Fetches blobs of remote segments, into the cache where there is one.

    Whatever is under way is not asked for again, neither by another thread nor, through the cache, by another process.
    """

    def __init__(self, cache: SegmentCache | None) -> None:
        self.cache = cache
        self.fetcher = Fetcher()
        self._lock = threading.Lock()

    def want(self, segment: OpenSegment, numbers: Int64s, dense: bool, urgent: bool) -> list[Future[Arrival]]:
        """Requests that bring some blobs of one segment.

        Args:
            segment: it.
            numbers: the blobs, ascending.
            dense: whether most of its blobs will be wanted: then those beside them are fetched too.
            urgent: whether someone is waiting for them.
        """
        index = segment.index
        assert index is not None
        with self._lock:
            under_way = segment.coming[numbers]
            futures = {int(i): segment.requests[int(i)] for i in np.unique(under_way) if i}
            fresh = numbers[(under_way == 0) & (segment.compared[numbers] == 0)]
            if dense and len(fresh):
                fresh = _pieces(segment, fresh)
            found = list(futures.values())
            for runs in _requests(index.offsets, index.lengths, fresh):
                number = segment.next_request
                segment.next_request += 1
                nbytes = sum(_extent(segment, run)[1] for run in runs)
                work = partial(self._bring, segment, number, runs)
                future = self.fetcher.submit(work, nbytes + REQUEST_COST * len(runs), urgent)
                segment.requests[number] = future
                for first, last in runs:
                    segment.coming[first:last] = number
                found.append(future)
            return found

    def close(self) -> None:
        """Ask for nothing more."""
        self.fetcher.close()

    def _bring(self, segment: OpenSegment, number: int, runs: Sequence[Run]) -> Arrival:
        try:
            arrival = Arrival(segment)
            if segment.file is None or self.cache is None:
                self._fetch(segment, runs, arrival, None)
            else:
                self._fill(segment, runs, arrival, self.cache)
            return arrival
        finally:
            with self._lock:
                for first, last in runs:
                    segment.coming[first:last] = 0
                del segment.requests[number]

    def _fill(self, segment: OpenSegment, runs: Sequence[Run], arrival: Arrival, cache: SegmentCache) -> None:
        """Fetch what is still missing of some runs into the cache; what others are fetching is waited for."""
        file = segment.file
        assert file is not None
        end, pause = time.monotonic() + _PATIENCE, 0.002
        while runs:
            claim = cache.claim(file)
            if claim is None:
                self._fetch(segment, runs, arrival, None)
                return
            with claim:
                patient = time.monotonic() < end
                mine = [run for run in runs if claim.take(*run) or not patient]
                missing = [left for run in mine if (left := segment.missing(*run)) is not None]
                nbytes = sum(_extent(segment, run)[1] for run in missing)
                if missing:
                    room = cache.admit(nbytes, file.path.name)
                    self._fetch(segment, missing, arrival, claim.write if room else None)
                    for first, last in missing:
                        for run in runs_of(segment.compared[first:last] != 0):
                            claim.mark(first + run[0], first + run[1])
            runs = [run for run in runs if run not in mine]
            if runs and self.fetcher.closed.wait(pause):
                return
            pause = min(2 * pause, 0.05)

    def _fetch(self, segment: OpenSegment, runs: Sequence[Run], arrival: Arrival, write: object) -> None:
        raise NotImplementedError
