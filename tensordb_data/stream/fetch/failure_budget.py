"""FailureBudget: how many bad samples a stream may skip before it gives up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from tensordb_data.errors import CorruptBlobError, SampleError, StorageError
from tensordb_data.stream.plan.sample_table import SampleTable
from tensordb_data.stream.stats import Stats

log = logging.getLogger("tensordb_data.stream")

_PROBATION = 1000
"""A rate is counted over at least so many samples, so that one bad sample among the first does not exceed it."""


class FailureBudget:
    """Counts the skipped samples of one stream; thread-safe.

    `max_failures` is a number or a rate. A number limits how many different samples are bad: a sample that is skipped
    in every pass counts once. A rate is compared with the samples tried so far, and at least with a thousand. If the
    store fails, this is no fault of the sample, so no sample is skipped for it.
    """

    def __init__(self, allowed: int | float, stats: Stats) -> None:
        self._allowed, self._stats = allowed, stats
        self._lock = threading.Lock()
        self._tried = self._skipped = 0
        self._bad: set[ObjectId] = set()

    def can_skip(self, error: SampleError) -> bool:
        """Whether a sample with this error may be skipped at all."""
        cause = error.__cause__
        outage = isinstance(cause, StorageError) and not isinstance(cause, CorruptBlobError)
        return bool(self._allowed) and not outage

    def count_tried(self, samples: int) -> None:
        """Count samples that a task has worked on."""
        with self._lock:
            self._tried += samples

    def loadable(self, table: SampleTable, rows: NDArray[np.int64], load: Callable[[int], object]) -> NDArray[np.int64]:
        """Skip the bad samples among those at `rows` of a table.

        Args:
            table: The table.
            rows: The samples to try.
            load: Loads the sample in one row; raises SampleError if the sample is bad.

        Returns:
            The rows of the good samples.

        Raises:
            SampleError: The budget is used up, or a sample may not be skipped.
        """
        good = []
        for row in rows.tolist():
            try:
                load(row)
                good.append(row)
            except SampleError as error:
                if not self.can_skip(error):
                    raise
                self.skip(table.id(row), error)
        return np.array(good, np.int64)

    def skip(self, id: ObjectId, error: SampleError) -> None:
        """Count and log a bad sample.

        Raises:
            SampleError: The budget is used up.
        """
        with self._lock:
            self._stats.count_skipped()
            self._skipped += 1
            skipped, allowed = self._skipped, self._allowed
            if isinstance(allowed, float):
                allowed = allowed * max(self._tried, _PROBATION)
            else:
                self._bad.add(id)
                skipped = len(self._bad)
        if skipped > allowed:
            raise SampleError(
                f"{error} (this is bad sample number {skipped}, and max_failures={self._allowed} is used up; the others"
                " are in the log of tensordb_data.stream)"
            ) from error
        log.warning("skipped a bad sample (%d so far): %s", skipped, error)
