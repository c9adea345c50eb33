"""Benchmark: measures how fast a training loop runs on its loader, and how fast it would run if loading were free."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from tensordb_data.common.html import Report
from tensordb_data.errors import QueryError

_KEPT, _KEPT_BYTES = 16, 256 << 20
_WARM = 0.1  # this part of the time is not counted, since the first batches wait for workers, files and compilers


@dataclass(frozen=True)
class Bench(Report):
    """Rates of one loop, in samples a second."""

    batches: int
    """Batches that were measured on the loader."""
    samples: int
    seconds: float
    samples_per_second: float
    """The rate on the loader."""
    replayed_per_second: float | None
    """The rate on batches from memory; `None` without a step."""
    speedup: float | None
    """How many times as fast the loop would be if loading were free."""
    stats: Mapping[str, Any] | None
    """The stats of the stream, if the loader is a stream or reads one; see `Stream.stats`."""

    @property
    def batch_seconds(self) -> float:
        """Time from batch to batch. Without a step, this is the step below which a training loop waits for batches."""
        return self.seconds / self.batches


def bench(loader: Iterable[Any], step: Callable[[Any], object] | None = None, *, seconds: float = 10.0) -> Bench:
    """Measure a loop twice: `step(batch)` over the batches of `loader`, and then over a few batches in memory.

    The second rate is what the loop would reach if loading took no time. The ratio of the two rates says how much
    faster loading could help. A stream has the same position afterwards.

    Args:
        loader: a stream, a DataLoader, a `tf.data.Dataset`, or any other iterable of batches that can be iterated anew.
        step: one training step. It must wait for its device (`torch.cuda.synchronize()`), and may not change its batch.
            Without it only the loader is measured.
        seconds: of each of the two measurements.

    Raises:
        QueryError: the loader has no batch, or waits for samples that are still to be written.
    """
    if getattr(getattr(loader, "spec", None), "follow", False):
        raise QueryError("a stream with follow=True waits for its writers: measure one without it")
    state = loader.state_dict() if hasattr(loader, "state_dict") and hasattr(loader, "stats") else None
    kept: list[Any] = []
    try:
        endless = _endless(loader)
        with closing(endless):
            nbytes = 0
            for batch in _until(_WARM * seconds, endless, step):
                if not kept or (len(kept) < _KEPT and nbytes < _KEPT_BYTES):
                    kept.append(batch)
                    nbytes += _nbytes(batch)
            batches, samples, took = _measured(seconds, endless, step)
        counted = getattr(loader, "dataset", loader)
        stats = counted.stats() if hasattr(counted, "stats") else None
    finally:
        if state is not None:
            loader.load_state_dict(state)  # type: ignore[attr-defined]
    rate = samples / took
    replayed = None
    if step is not None:
        _, again, took_again = _measured(seconds, cycle(kept), step)
        replayed = again / took_again
    return Bench(batches, samples, took, rate, replayed, None if replayed is None else replayed / rate, stats)


def _endless(loader: Iterable[Any]) -> Generator[Any, None, None]:
    """Yield batches without end. When it is closed, it closes the iteration in progress."""
    while True:
        found = False
        iteration: Any = iter(loader)
        try:
            for batch in iteration:
                found = True
                yield batch
        finally:
            if hasattr(iteration, "close"):
                iteration.close()
        if not found:
            raise QueryError("there is nothing to measure: the loader has no batch")


def _until(seconds: float, batches: Iterator[Any], step: Callable[[Any], object] | None) -> Iterator[Any]:
    """Yield batches until `seconds` have passed, at least one."""
    end = time.perf_counter() + seconds
    for batch in batches:
        if step is not None:
            step(batch)
        yield batch
        if time.perf_counter() >= end:
            return


def _measured(seconds: float, batches: Iterator[Any], step: Callable[[Any], object] | None) -> tuple[int, int, float]:
    """Measure for `seconds`. Returns the number of batches, the number of samples, and the exact time."""
    begin, count, samples = time.perf_counter(), 0, 0
    for batch in _until(seconds, batches, step):
        count += 1
        samples += _size(batch)
    return count, samples, time.perf_counter() - begin


def _size(batch: Any) -> int:
    """The number of samples in a batch, by its first part."""
    while isinstance(batch, (dict, tuple)) and batch:
        batch = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
    shape = getattr(batch, "shape", None)
    return int(shape[0]) if shape is not None and len(shape) else len(batch)


def _nbytes(batch: Any) -> int:
    if isinstance(batch, dict):
        return sum(map(_nbytes, batch.values()))
    if isinstance(batch, (tuple, list)):
        return sum(map(_nbytes, batch))
    return int(getattr(batch, "nbytes", 0)) or (len(batch) if isinstance(batch, (bytes, str)) else 8)
