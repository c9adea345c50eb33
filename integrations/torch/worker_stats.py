"""What workers of a DataLoader count: their items (WorkerIteration), and times for their parent (WorkerStats)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from tensordb_data.common.telemetry.measures import Value, watch
from tensordb_data.stream.stats import SIZE, Stats, values_of
from tensordb_data.torch.sample_mode import Items

_WORKERS = 256


class WorkerIteration(Iterator[dict[str, Any]]):
    """One iteration in one worker. It counts what it has yielded, and can be resumed from this count.

    Loaders that ask their workers for a state use it, such as the StatefulDataLoader of torchdata.
    """

    def __init__(self, items: Callable[[int], Items]) -> None:
        self._make = items
        self._items, self._yielded = items(0), 0

    def __next__(self) -> dict[str, Any]:
        item = next(self._items)
        self._yielded += 1
        return item

    def state_dict(self) -> dict[str, int]:
        """The number of items that this iteration has yielded."""
        return {"yielded": self._yielded}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on after the items that another iteration has yielded. It must have had the same start state."""
        self._items.close()
        self._items, self._yielded = self._make(state["yielded"]), state["yielded"]

    def close(self) -> None:
        """End the iteration and its threads."""
        self._items.close()


class WorkerStats:
    """One row of totals for each worker, in shared memory."""

    def __init__(self) -> None:
        self._rows = torch.zeros((_WORKERS, SIZE), dtype=torch.float64)
        watch(self, functools.partial(_values, self._rows))

    def share(self) -> None:
        """Move to shared memory, before workers are started."""
        self._rows.share_memory_()  # type: ignore[no-untyped-call]

    def rows(self) -> list[list[float]]:
        """The rows of those workers that have done something."""
        return _used(self._rows)

    def writer(self, worker: int, stats: Stats) -> WorkerStatsWriter | None:
        """Make the writer for one iteration in a worker, which `stats` counts. `None` if there is no row left."""
        return WorkerStatsWriter(self._rows[worker].numpy(), stats) if worker < _WORKERS else None


class WorkerStatsWriter:
    """Keeps the row of one worker up to date."""

    def __init__(self, row: Any, stats: Stats) -> None:
        self._row, self._stats = row, stats
        self._before = row - stats.totals()

    def write(self) -> None:
        """Add what was counted since the iteration began."""
        self._row[:] = self._before + self._stats.totals()


def _used(rows: torch.Tensor) -> list[list[float]]:
    return [list(map(float, row)) for row in rows[rows.any(dim=1)].tolist()]


def _values(rows: torch.Tensor) -> Iterator[Value]:
    """What the workers have counted, for whoever asks this process for its metrics."""
    for row in _used(rows):
        yield from values_of(row)
