"""Counters of a running stream: where its time goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_WORK = ("index", "fetch", "decode", "transform", "batch")


class Clock:
    """Work of one task, in seconds by stage; used by one thread, then added to `Stats`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.bytes = 0

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


class Stats:
    """Totals since the stream was made; thread-safe."""

    def __init__(self, threads: int) -> None:
        self._lock = threading.Lock()
        self._threads = threads
        self._seconds = dict.fromkeys((*_WORK, "wait", "loop"), 0.0)
        self._samples = self._batches = self._bytes = 0
        self.skipped = 0

    def worked(self, clock: Clock) -> None:
        """Add the work of one task."""
        with self._lock:
            for stage, seconds in clock.seconds.items():
                self._seconds[stage] += seconds
            self._bytes += clock.bytes

    def delivered(self, samples: int, wait: float, loop: float) -> None:
        """Count one batch, the seconds the loop waited for it and those it spent elsewhere before asking."""
        with self._lock:
            self._samples += samples
            self._batches += 1
            self._seconds["wait"] += wait
            self._seconds["loop"] += loop

    def report(self) -> dict[str, Any]:
        """Counts, seconds by stage and the stage that limits the rate; see `Stream.stats`."""
        with self._lock:
            seconds = dict(self._seconds)
            elapsed = seconds["wait"] + seconds["loop"]
            stage = max(_WORK, key=seconds.__getitem__)
            limited = seconds["wait"] > seconds["loop"]
            return {
                "samples": self._samples,
                "batches": self._batches,
                "bytes": self._bytes,
                "samples_per_second": self._samples / elapsed if elapsed else 0.0,
                "threads": self._threads,
                "skipped": self.skipped,
                "seconds": seconds,
                "bottleneck": stage if limited else "loop",
            }
