"""Decide when to save: every N steps or seconds, when a metric improves, or as often as a budget allows."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from tensordb_data.checkpoint.options import Every
from tensordb_data.errors import CheckpointError
from tensordb_data.warehouse.metrics import scalar

_FIRST = 10  # steps measured before the first save under a budget
_KEPT = 32  # measurements that a median is taken of


class SaveSchedule:
    """Decides after each step whether a save is due: if at least one of its rules asks for it.

    Args:
        every: How often to save.
        on_best: A metric. A save is due when it is better than in any set of the run. `("val_loss", "min")` if less is
            better.

    Raises:
        CheckpointError: None of them is given, or `on_best` is malformed.
    """

    def __init__(
        self,
        every: Every | None = None,
        on_best: str | tuple[str, str] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if every is None and on_best is None:
            raise CheckpointError(
                "When to save? Give every=200 (steps), every=Every(seconds=60), every=Every(overhead=0.02) or on_best=."
            )
        self.every = every.steps if every else None
        self.every_seconds = every.seconds if every else None
        self.metric, self.sign = _metric(on_best)
        self.budget = Budget(every.overhead) if every and every.overhead else None
        self._clock = clock
        self._best: float | None = None
        self._saved_at = clock()
        self._mark: float | None = None

    def due(self, step: int, previous: int, saved: int, metrics: Mapping[str, Any], busy: bool) -> bool:
        """Whether a save is due now that a step has ended.

        Args:
            step: Its number.
            previous: That of the step that ended before.
            saved: The last step that was saved.
            metrics: Of this step.
            busy: Whether an earlier save was being stored meanwhile.
        """
        now = self._clock()
        due = self.every is not None and step // self.every > previous // self.every
        due |= self.every_seconds is not None and now - self._saved_at >= self.every_seconds
        if self.budget is not None:
            if self._mark is not None and step > previous:
                self.budget.ran((now - self._mark) / (step - previous), step - previous, busy)
            due |= self.budget.steps is not None and step - saved >= self.budget.steps
        return self.improves(metrics) or due

    def improves(self, metrics: Mapping[str, Any]) -> bool:
        """Whether the metric of `on_best` is among these, and better than ever. It is the best from then on."""
        if self.metric is None or self.metric not in metrics:
            return False
        value = scalar(self.metric, metrics[self.metric])
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise CheckpointError(f"on_best={self.metric!r} must be a number to be compared. Found: {value!r}")
        if math.isnan(value) or (self._best is not None and self.sign * value <= self._best):
            return False
        self._best = self.sign * value
        return True

    def remember(self, best: float | None) -> None:
        """The best value that a set of the run has already."""
        if best is not None and (self._best is None or self.sign * best > self._best):
            self._best = self.sign * best

    def saved(self, stall: float) -> None:
        """A save was taken; the loop waited so many seconds."""
        self._saved_at = self._clock()
        if self.budget is not None:
            self.budget.stalled(stall)

    def resume(self) -> None:
        """The loop goes on: the next step begins."""
        self._mark = self._clock()


class Budget:
    """Chooses the number of steps between saves so that they cost at most a given part of the training time.

    What a save costs is measured: the time for which the loop waits, and what the steps that run while it is stored
    take longer than the others. The idea is that of CheckFreq (Mohan, Phanishayee and Chidambaram, FAST 2021).

    Attributes:
        steps: The number of steps, None until some have been measured.
    """

    def __init__(self, part: float) -> None:
        self._part = part
        self._idle: deque[float] = deque(maxlen=_KEPT)
        self._busy: deque[float] = deque(maxlen=_KEPT)
        self._during: deque[int] = deque(maxlen=_KEPT)  # steps that ran while each of the last saves was stored
        self._stalls: deque[float] = deque(maxlen=_KEPT)
        self._measured = 0
        self.steps: int | None = None

    def ran(self, seconds: float, steps: int, busy: bool) -> None:
        """Steps took so long each, while a save was being stored or not."""
        (self._busy if busy else self._idle).append(seconds)
        if busy and self._during:
            self._during[-1] += steps
        self._measured += steps
        self._choose()

    def stalled(self, seconds: float) -> None:
        """A save was taken and the loop waited so long."""
        self._stalls.append(seconds)
        self._during.append(0)
        self._choose()

    def _choose(self) -> None:
        if not self._stalls:
            self.steps = 0 if self._measured >= _FIRST else None
        if not self._stalls or not self._idle:
            return
        alone = statistics.median(self._idle)
        slower = max(0.0, statistics.median(self._busy) - alone) if self._busy else 0.0
        cost = statistics.median(self._stalls) + slower * statistics.mean(self._during)
        if alone > 0:
            self.steps = max(1, math.ceil(cost / (self._part * alone)))


def _metric(on_best: object) -> tuple[str | None, int]:
    name, mode = on_best if isinstance(on_best, tuple) and len(on_best) == 2 else (on_best, "max")
    if (name is not None and (not isinstance(name, str) or not name)) or mode not in ("min", "max"):
        raise CheckpointError(
            f'`on_best` names a metric: "val_acc", or ("val_loss", "min") if less is better. Found: {on_best!r}'
        )
    return name, 1 if mode == "max" else -1
