"""Counters of a running stream: where its time goes."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tensordb_data.common.system.machine import cpus
from tensordb_data.common.telemetry.measures import Value, watch
from tensordb_data.stream.bottleneck import Seconds, Times, advice, bottleneck

THREADS = ("index", "fetch", "decode", "transform", "batch")
AHEAD = ("cursor", "plan", "commits")
"""Stages ahead of the threads: reading the index by page, reading it as a whole, and waiting for commits."""
_LOOP = ("start", "wait", "loop")
_COUNTS = ("samples", "batches", "bytes", "blobs", "missed", "skipped", "deleted")
SIZE = 2 * len(THREADS + AHEAD) + len(_LOOP + _COUNTS)
"""Length of `Stats.totals`."""


def values_of(totals: Sequence[float]) -> Iterator[Value]:
    """The measures of `Stats.totals`; none of a stream that has done nothing."""
    stages = len(THREADS + AHEAD)
    yield from _values(
        *(
            dict(zip(names, totals[start : start + len(names)], strict=True))
            for names, start in (
                (THREADS + AHEAD, 0), (THREADS + AHEAD, stages), (_LOOP, 2 * stages), (_COUNTS, SIZE - len(_COUNTS)),
            )
        )
    )  # fmt: skip


def _values(
    work: Mapping[str, float], wait: Mapping[str, float], loop: Mapping[str, float], counts: Mapping[str, float]
) -> Iterator[Value]:
    if not any(counts.values()):
        return
    for name in ("samples", "batches", "bytes", "skipped", "deleted"):
        yield Value(f"tensordb.stream.{name}", float(counts[name]))
    yield Value("tensordb.stream.blobs", float(counts["blobs"] - counts["missed"]), (("cache", "hit"),))
    yield Value("tensordb.stream.blobs", float(counts["missed"]), (("cache", "miss"),))
    for stage in (*THREADS, *AHEAD):
        if work[stage] or wait[stage]:
            yield Value("tensordb.stream.stage", work[stage], (("stage", stage), ("state", "work")))
            yield Value("tensordb.stream.stage", wait[stage], (("stage", stage), ("state", "wait")))
    for part in _LOOP:
        yield Value("tensordb.stream.loop", loop[part], (("part", part),))


class Clock:
    """The times of one task, in seconds by stage. One thread uses it, and then it is added to `Stats`.

    The time of a stage has two parts. In `work`, the thread ran. In `wait`, it waited for a store, a disk, the lock of
    the interpreter, or a free core.
    """

    wall: Callable[[], float] = staticmethod(time.perf_counter)
    cpu: Callable[[], float] = staticmethod(time.thread_time)

    def __init__(self) -> None:
        self.work: dict[str, float] = {}
        self.wait: dict[str, float] = {}
        self.bytes = self.blobs = self.missed = 0

    def add(self, stage: str, work: float, wait: float) -> None:
        """Add seconds to a stage."""
        self.work[stage] = self.work.get(stage, 0.0) + work
        self.wait[stage] = self.wait.get(stage, 0.0) + wait

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        lap = self.laps()
        try:
            yield
        finally:
            lap(stage)

    def laps(self) -> Callable[[str], None]:
        """Returns a function that adds the time since its last call (at first: since now) to a stage."""
        before = self.wall(), self.cpu()

        def lap(stage: str) -> None:
            nonlocal before
            now = self.wall(), self.cpu()
            wall, cpu = now[0] - before[0], now[1] - before[1]
            self.add(stage, cpu, max(0.0, wall - cpu))
            before = now

        return lap


class Stats:
    """The totals since the stream was made; thread-safe."""

    def __init__(self, threads: int, workers: int = 0) -> None:
        self.threads, self.workers = threads, workers
        self._lock = threading.Lock()
        self._work = dict.fromkeys((*THREADS, *AHEAD), 0.0)
        self._wait = dict(self._work)
        self._loop = dict.fromkeys(_LOOP, 0.0)
        self._counts = dict.fromkeys(_COUNTS, 0)
        watch(self, functools.partial(_values, self._work, self._wait, self._loop, self._counts))

    def add_task(self, clock: Clock) -> None:
        """Add the times of one task."""
        with self._lock:
            for stage, seconds in clock.work.items():
                self._work[stage] += seconds
                self._wait[stage] += clock.wait[stage]
            self._counts["bytes"] += clock.bytes
            self._counts["blobs"] += clock.blobs
            self._counts["missed"] += clock.missed

    @contextmanager
    def time_ahead(self, stage: str) -> Iterator[None]:
        """Measure a stage ahead of the threads."""
        clock = Clock()
        try:
            with clock(stage):
                yield
        finally:
            self.add_task(clock)

    def count_batch(self, samples: int, wait: float, loop: float | None) -> None:
        """Count a batch that was delivered.

        Args:
            samples: in the batch.
            wait: seconds that the loop waited for the batch.
            loop: seconds that the loop was busy before it asked. None for the first batch of an iteration.
        """
        with self._lock:
            self._counts["samples"] += samples
            self._counts["batches"] += 1
            self._loop["start" if loop is None else "wait"] += wait
            self._loop["loop"] += loop or 0.0

    def count_skipped(self) -> None:
        """Count a bad sample."""
        with self._lock:
            self._counts["skipped"] += 1

    def count_deleted(self, count: int) -> bool:
        """Count deleted samples. Returns whether they are the first."""
        with self._lock:
            self._counts["deleted"] += count
            return self._counts["deleted"] == count

    def totals(self) -> list[float]:
        """All counters, for `report` in another process."""
        with self._lock:
            return [*self._work.values(), *self._wait.values(), *self._loop.values(), *self._counts.values()]

    def report(self, others: Sequence[Sequence[float]] = ()) -> dict[str, Any]:
        """See `Stream.stats`.

        Args:
            others: `totals` of the processes that work in place of this one.
        """
        own = self.totals()
        sums = iter([sum(column) for column in zip(own, *others, strict=True)])
        work = {stage: next(sums) for stage in self._work}
        wait = {stage: next(sums) for stage in self._wait}
        seconds = {name: next(sums) for name in _LOOP}
        counts = {name: int(next(sums)) for name in _COUNTS}
        stages: dict[str, Seconds] = {stage: (work[stage], wait[stage]) for stage in work}
        times = Times(
            self.threads,
            cpus(),
            {stage: stages[stage] for stage in THREADS},
            seconds["wait"],
            seconds["loop"],
            seconds["start"],
            stages["cursor"],
            stages["plan"],
            stages["commits"],
            missed=counts["missed"] / counts["blobs"] if counts["blobs"] else 0.0,
            processes=max(1, len(others)),
            workers=self.workers,
        )
        elapsed = sum(seconds.values()) / times.processes
        for part in ("cursor", "plan"):
            stages["index"] = (stages["index"][0] + stages[part][0], stages["index"][1] + stages.pop(part)[1])
        return {
            **{name: counts[name] for name in ("samples", "batches", "bytes")},
            "samples_per_second": counts["samples"] / elapsed if elapsed else 0.0,
            "bytes_per_second": counts["bytes"] / elapsed if elapsed else 0.0,
            "threads": times.threads * times.processes,
            "skipped": counts["skipped"],
            "deleted": counts["deleted"],
            "cache": {"hits": counts["blobs"] - counts["missed"], "misses": counts["missed"]},
            "stages": {stage: {"work": pair[0], "wait": pair[1]} for stage, pair in stages.items()},
            "seconds": {name: value / times.processes for name, value in seconds.items()},
            "bottleneck": bottleneck(times) if counts["batches"] else None,
            "advice": advice(times) if counts["batches"] else "nothing was delivered yet",
        }
