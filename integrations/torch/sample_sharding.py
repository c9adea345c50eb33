"""SampleSharding: computes which samples each DataLoader worker yields in sample-wise mode.

Every pair (role, rank) is a rank of the stream: it receives blocks of samples, and an equal part of the tail of each
pass. In a fresh run, worker w has role w. A DataLoader always asks its first worker first. So in a resumed run, the
first worker has the role whose batch is due.
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
"""Returns the number of samples in the pass of a number."""


@dataclass(frozen=True)
class SampleSharding:
    """How each pass is divided among `parts` readers."""

    block: int
    """The number of samples that are read at once."""
    parts: int
    end: End
    """What to do if a pass cannot be divided evenly. With `short`, some shares have one sample more than others. With
    `drop` or `pad`, all have the same number: one sample of a share is left out, or given twice."""

    def received(self, n: int) -> NDArray[np.int64]:
        """The number of samples that the stream delivers to each share of a pass of `n`: int64 [parts]."""
        return _received(n, self.block, self.parts)

    def given(self, n: int) -> NDArray[np.int64]:
        """The number of samples that each share of a pass of `n` yields: int64 [parts]."""
        if self.end == "short":
            return self.received(n)
        each = n // self.parts if self.end == "drop" else -(-n // self.parts)
        return np.full(self.parts, each, np.int64)

    def place(self, n: int, count_batch: int) -> tuple[int, int]:
        """Find where a share goes on that has yielded `delivered` samples of a pass of `n`.

        Returns:
            The position of the stream, and how many samples of the share to drop from there on.
        """
        sharding = _sharding(n, self.block, self.parts)
        rounds = min(count_batch // self.block, _whole(sharding))
        return sharding.position(rounds), count_batch - rounds * self.block


@dataclass(frozen=True)
class ShardProgress:
    """How far a sample-wise run has come. It is the same on every rank, though their shares differ."""

    sharding: SampleSharding
    workers: int
    """The number of workers of the loader."""
    roles: int
    """The number of workers that receive samples. There are fewer than `workers` if the run began with too few samples
    for all."""
    batch_size: int
    first: int
    """The first pass that has not ended for all shares."""
    until: int | None
    """The run ends before this pass."""
    batches: int = 0
    """The number of batches that the loop of this rank has received."""
    passed: tuple[int, ...] = ()
    """For each share, the number of samples in the passes before `first`."""

    @classmethod
    def fresh(
        cls, n: int, block: int, end: End, workers: int, world: int, batch_size: int, first: int, until: int | None
    ) -> ShardProgress:
        """The progress of a run that begins with pass `first`, of `n` samples."""
        roles = max(1, min(workers, n // world))
        sharding = SampleSharding(block, roles * world, end)
        return cls(sharding, workers, roles, batch_size, first, until, 0, (0,) * sharding.parts)

    def length(self, n: int, rank: int, *, drop_last: bool) -> int:
        """The samples in all batches of a rank, if each pass has `n`. A short batch counts as a full one.

        Args:
            n: The number of samples in a pass.
            rank: Whose batches.
            drop_last: Whether short batches are left out.
        """
        assert self.until is not None
        world = self.sharding.parts // self.roles
        samples = (self.until - self.first) * self.sharding.given(n)[rank::world]
        batches = samples // self.batch_size if drop_last else -(-samples // self.batch_size)
        return int(batches.sum()) * self.batch_size

    def role(self, worker: int, rank: int, length: Length) -> int | None:
        """The role of a worker of a rank; `None` if it has nothing to do."""
        return (worker + self._received(length)[1][rank]) % self.roles if worker < self.roles else None

    def left(self, length: Length) -> NDArray[np.int64]:
        """For each share, how many samples the loop has received of the passes from `first` on: int64 [parts].

        If the last batch of the last pass was short, the number is too large.
        """
        return self._received(length)[0] * self.batch_size - np.array(self.passed, np.int64)

    def _received(self, length: Length) -> tuple[NDArray[np.int64], list[int]]:
        """The number of batches that the loop has received of each share, and for each rank the role that is due.

        A loader asks its workers in turns. Towards the end of the run, it leaves out those whose share is through.
        """
        world = self.sharding.parts // self.roles
        full, due = divmod(self.batches, self.roles)
        counts = np.repeat(np.asarray(full + (np.arange(self.roles) < due), np.int64), world)
        dues = [due] * world
        ends = self._ends(counts, length)
        if ends is None:
            return counts, dues
        for rank in range(world):
            own = ends[rank::world]
            if (counts[rank::world] > own).any():
                counts[rank::world], dues[rank] = _in_turns(self.batches, own)
        return counts, dues

    def _ends(self, counts: NDArray[np.int64], length: Length) -> NDArray[np.int64] | None:
        """How many batches each share has in all: int64 [parts]. `None` if none can be through after so many."""
        if self.until is None:
            return None
        samples, number = np.array(self.passed, np.int64), self.first
        while number < self.until:
            if (counts * self.batch_size <= samples).all():
                return None
            samples, number = samples + self.sharding.given(length(number)), number + 1
        return -(-samples // self.batch_size)

    def after(self, batches: int, length: Length) -> ShardProgress:
        """The progress after so many more batches."""
        turns = replace(self, batches=self.batches + batches)
        left, first, passed = turns.left(length), turns.first, np.array(turns.passed, np.int64)
        while left.all() and (self.until is None or first + 1 < self.until):
            given = self.sharding.given(length(first))
            if (left < given).any():
                break
            left, passed, first = left - given, passed + given, first + 1
        return replace(turns, first=first, passed=tuple(passed.tolist()))

    def begun(self, length: Length) -> list[int]:
        """The passes that have begun for one share, and have not ended for all."""
        left, number = self.left(length), self.first
        while left.max() > 0 and (self.until is None or number < self.until):
            left, number = left - self.sharding.given(length(number)), number + 1
        return list(range(self.first, number))

    def place(self, part: int, more: int, length: Length) -> tuple[int, int, int] | None:
        """Find where one share goes on, after `more` samples.

        Returns:
            The pass, the position of the stream, and how many samples to drop from there on. `None` if it has ended.
        """
        left, number = int(self.left(length)[part]) + more, self.first
        while left and (self.until is None or number < self.until):
            given = int(self.sharding.given(length(number))[part])
            if left < given:
                break
            left, number = left - given, number + 1
        if number == self.until:
            return None
        return (number, *(self.sharding.place(length(number), left) if left else (0, 0)))

    def to_doc(self) -> dict[str, Any]:
        """The JSON form, without what the dataset and the loader know."""
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


def _in_turns(batches: int, ends: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Take batches from shares in turns, as long as each has some: how many of each, and whose turn it is then."""
    rounds = 0
    while (active := np.flatnonzero(ends > rounds)).size:
        more = min(int(ends[active].min()) - rounds, batches // active.size)
        if more == 0:
            break
        rounds, batches = rounds + more, batches - more * active.size
    counts = np.minimum(ends, rounds)
    counts[active[:batches]] += 1
    return counts, int(active[batches]) if batches < active.size else 0


def _runs(values: tuple[int, ...]) -> list[list[int]]:
    """Join equal neighbours to (count, value). There may be thousands of shares, and they differ by few samples."""
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
    """The number of rounds that are surely full: only the last two can be short."""
    return max(0, sharding.rounds - 2)


@lru_cache(maxsize=64)
def _received(n: int, block: int, parts: int) -> NDArray[np.int64]:
    sharding = _sharding(n, block, parts)
    materialize = _whole(sharding)
    tails = [[sharding.batch(round_, part) for round_ in range(materialize, sharding.rounds)] for part in range(parts)]
    return np.array([materialize * block + sum(high - low for low, high in tail) for tail in tails], np.int64)
