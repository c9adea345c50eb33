"""WorkerStats: the counts and times of the workers of a DataLoader, where their parent can read them."""

from __future__ import annotations

from typing import Any

import torch

from tensordb_data.stream.stats import SIZE, Stats

_WORKERS = 256


class WorkerStats:
    """One row of totals for each worker, in shared memory."""

    def __init__(self) -> None:
        self._rows = torch.zeros((_WORKERS, SIZE), dtype=torch.float64)
        self._share_memory()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._share_memory()

    def _share_memory(self) -> None:
        self._rows.share_memory_()  # type: ignore[no-untyped-call]

    def rows(self) -> list[list[float]]:
        """The rows of those workers that have done something."""
        used = self._rows[self._rows.any(dim=1)]
        return [list(map(float, row)) for row in used.tolist()]

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
