"""Shares: which samples each DataLoader worker yields in sample-wise mode, as arithmetic on positions.

Every pair (role, rank) takes part in the stream as a rank of its own: it receives blocks of samples, and an equal part
of each pass's tail. A role is what a worker does: worker w plays role w in a fresh run. A resumed run starts with the
role whose batch is due, because a DataLoader always asks its first worker first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensordb_data.stream.order.sharding import PassSharding
from tensordb_data.stream.spec import End

Length = Callable[[int], int]
"""The number of samples of a pass, by its number."""


@dataclass(frozen=True)
class SampleSharding:
    """How each pass is shared among `parts` readers."""

    block: int
    """Samples that are read at once."""
    parts: int
    end: End
    """Shares of a pass that does not divide: `short`, some have a sample more than others; `drop` or `pad`, all have
    the same number, by leaving one sample out or giving one twice."""

    def received(self, n: int) -> NDArray[np.int64]:
        """Samples that the engine delivers to each share of a pass of `n`: int64 [parts]."""
        return _received(n, self.block, self.parts)

    def given(self, n: int) -> NDArray[np.int64]:
        """Samples that are passed on to each share of a pass of `n`: int64 [parts]."""
        if self.end == "short":
            return self.received(n)
        each = n // self.parts if self.end == "drop" else -(-n // self.parts)
        return np.full(self.parts, each, np.int64)

    def place(self, n: int, count_batch: int) -> tuple[int, int]:
        """The position of the stream in a pass of `n` of which one share has so many samples, and how many to drop
        from there on.
        """
        sharding = _sharding(n, self.block, self.parts)
        rounds = min(count_batch // self.block, _whole(sharding))
        return sharding.position(rounds), count_batch - rounds * self.block


@dataclass(frozen=True)
class ShardProgress:
    """Where a sample-wise run stands. All of it is the same in every rank, though their shares differ."""

    sharding: SampleSharding
    workers: int
    """That the loader has."""
    roles: int
    """Workers that receive samples: fewer than there are when the run began with too few samples for all."""
    batch_size: int
    first: int
    """The pass that comes first among those that are not over for all shares."""
    until: int | None
    """The pass to end before."""
    batches: int = 0
    """Batches that this rank's loop has received."""
    passed: tuple[int, ...] = ()
    """Samples of each share that were in passes before the first."""

    @classmethod
    def fresh(
        cls, n: int, block: int, end: End, workers: int, world: int, batch_size: int, first: int, until: int | None
    ) -> ShardProgress:
        """A run that begins with pass `first`, of `n` samples."""
        roles = max(1, min(workers, n // world))
        sharding = SampleSharding(block, roles * world, end)
        return cls(sharding, workers, roles, batch_size, first, until, 0, (0,) * sharding.parts)

    def role(self, worker: int) -> int | None:
        """What a worker does, or `None` when there is nothing to do for it."""
        return (worker + self.batches) % self.roles if worker < self.roles else None

    @property
    def left(self) -> NDArray[np.int64]:
        """Samples of each share that the loop has received of the passes from the first on: int64 [parts]. More than
        there were, in the last pass, when the last batch was short.
        """
        full, more = divmod(self.batches, self.roles)
        counts = (full + (np.arange(self.roles) < more)) * self.batch_size
        return np.asarray(np.repeat(counts, self.sharding.parts // self.roles) - np.array(self.passed, np.int64))

    def after(self, batches: int, length: Length) -> ShardProgress:
        """The run after so many more batches."""
        turns = replace(self, batches=self.batches + batches)
        left, first, passed = turns.left, turns.first, np.array(turns.passed, np.int64)
        while left.all() and (self.until is None or first + 1 < self.until):
            given = self.sharding.given(length(first))
            if (left < given).any():
                break
            left, passed, first = left - given, passed + given, first + 1
        return replace(turns, first=first, passed=tuple(passed.tolist()))

    def begun(self, length: Length) -> list[int]:
        """The passes of which a share has received something, and another not all."""
        left, number = self.left, self.first
        while left.max() > 0 and (self.until is None or number < self.until):
            left, number = left - self.sharding.given(length(number)), number + 1
        return list(range(self.first, number))

    def place(self, part: int, more: int, length: Length) -> tuple[int, int, int] | None:
        """Where one share goes on, behind `more` samples: the pass, the position of the stream, and the samples to drop
        from there on. `None` when it is through.
        """
        left, number = int(self.left[part]) + more, self.first
        while left and (self.until is None or number < self.until):
            given = int(self.sharding.given(length(number))[part])
            if left < given:
                break
            left, number = left - given, number + 1
        if number == self.until:
            return None
        return (number, *(self.sharding.place(length(number), left) if left else (0, 0)))

    def to_doc(self) -> dict[str, Any]:
        """The JSON form of what is no property of dataset or loader."""
        counted = {"batches": self.batches, "batch_size": self.batch_size, "num_workers": self.workers}
        return {**counted, "roles": self.roles, "passed": _runs(self.passed)}

    @classmethod
    def from_doc(
        cls, doc: Mapping[str, Any], block: int, end: End, world: int, first: int, until: int | None
    ) -> ShardProgress:
        """Read the JSON form."""
        passed = tuple(value for count, value in doc["passed"] for _ in range(count))
        sharding = SampleSharding(block, doc["roles"] * world, end)
        return cls(
            sharding, doc["num_workers"], doc["roles"], doc["batch_size"], first, until, doc["batches"], passed
        )  # fmt: skip


def _runs(values: tuple[int, ...]) -> list[list[int]]:
    """Equal neighbours as (count, value): shares differ by few samples, and there may be thousands of them."""
    runs: list[list[int]] = []
    for value in values:
        if runs and runs[-1][1] == value:
            runs[-1][0] += 1
        else:
            runs.append([1, value])
    return runs


def _sharding(n: int, block: int, parts: int) -> PassSharding:
    return PassSharding(n, 0, block, parts, "short")


def _whole(sharding: PassSharding) -> int:
    """Rounds that are whole for sure: only the last two can be short."""
    return max(0, sharding.rounds - 2)


@lru_cache(maxsize=64)
def _received(n: int, block: int, parts: int) -> NDArray[np.int64]:
    sharding = _sharding(n, block, parts)
    materialize = _whole(sharding)
    tails = [[sharding.batch(round_, part) for round_ in range(materialize, sharding.rounds)] for part in range(parts)]
    return np.array([materialize * block + sum(high - low for low, high in tail) for tail in tails], np.int64)
