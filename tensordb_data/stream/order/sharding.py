"""PassSharding: cuts the positions of a pass into rounds. A round gives one batch to each rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tensordb_data.stream.spec import End
from tensordb_data.stream.state import Position


class Rounds(Protocol):
    """The rounds of the rest of a pass."""

    @property
    def rounds(self) -> int:
        """The number of batches that each rank receives until the end of the pass."""

    def has(self, round_: int) -> bool:
        """Whether there is a round of this number, from 0 on. It may be known before `rounds` is."""

    def batch(self, round_: int, rank: int) -> tuple[int, int]:
        """The positions `low` to `high` - 1 of a batch. Positions behind the end stand for those from 0 on."""

    def position(self, rounds: int) -> int:
        """The number of samples of the pass that are delivered after `rounds` of these rounds."""


@dataclass(frozen=True)
class PassSharding:
    """The rounds of the rest of a pass: positions `start` to `n` - 1, cut into batches for `world` ranks."""

    n: int
    start: int
    batch_size: int
    world: int
    end: End

    @property
    def _stride(self) -> int:
        return self.batch_size * self.world

    @cached_property
    def _full(self) -> int:
        """The number of rounds of full batches, before the tail."""
        full, tail = divmod(self.n - self.start, self._stride)
        return full - 1 if self._shared_over_two(full, tail) else full

    def _shared_over_two(self, full: int, tail: int) -> bool:
        """Whether the tail has fewer samples than there are ranks. Then it and the last full round are shared evenly,
        over two rounds.
        """
        return self.end == "short" and 0 < tail < self.world and full > 0 and self.batch_size > 1

    @cached_property
    def rounds(self) -> int:
        """The number of batches that each rank receives until the end of the pass."""
        full, tail = divmod(self.n - self.start, self._stride)
        if tail == 0 or self.end == "drop":
            return full
        return full + 1

    def has(self, round_: int) -> bool:
        """Whether there is a round of this number, from 0 on."""
        return round_ < self.rounds

    def batch(self, round_: int, rank: int) -> tuple[int, int]:
        """The positions `low` to `high` - 1 of a batch. Positions from `n` on stand for those from 0 on (padding)."""
        full, size = self._full, self.batch_size
        if round_ < full:
            low = self.start + (round_ * self.world + rank) * size
            return low, low + size
        base = self.start + full * self._stride
        left = self.n - base
        if self.end == "pad":
            low = base + rank * self.batch_size
            return low, low + self.batch_size
        batches = (self.rounds - full) * self.world
        if left < batches:  # fewer samples than ranks: each rank gets one, and the last ones repeat the first ones
            return base + rank, base + rank + 1
        number = (round_ - full) * self.world + rank
        size, more = divmod(left, batches)
        low = base + number * size + min(number, more)
        return low, low + size + (number < more)

    def position(self, rounds: int) -> int:
        """The number of samples of the pass that are delivered after `rounds` of these rounds."""
        if rounds == 0:
            return self.start
        if rounds <= self._full and rounds < self.rounds:
            return self.start + rounds * self.batch_size * self.world
        return self.n if rounds >= self.rounds else min(self.n, self.batch(rounds - 1, self.world - 1)[1])


class BatchRange(NamedTuple):
    """One batch: positions `low` to `high` - 1 of pass `number`, and the position of the stream after it."""

    number: int
    low: int
    high: int
    position_after: Position


def positions_of(ranges: Sequence[BatchRange]) -> NDArray[np.int64]:
    """The positions of all samples of some batches, one batch after the other: int64 [m]."""
    low, high = ranges[0].low, ranges[-1].high
    if sum(range_.high - range_.low for range_ in ranges) == high - low:  # of all ranks and workers, they lie together
        return np.arange(low, high)
    return np.concatenate([np.arange(range_.low, range_.high) for range_ in ranges])


def batch_ranges(
    sharding: Rounds, number: int, rank: int, worker: int = 0, workers: int = 1, first: int = 0
) -> Iterator[BatchRange]:
    """Yield the batches of one worker of one rank in the rest of a pass.

    Args:
        sharding: of the rest of the pass.
        number: of the pass.
        rank: which batch of each round.
        worker: takes the rounds r with (first + r) % workers == worker.
        workers: number of workers that share the rank's batches.
        first: the number of rounds that this rank received before this pass, since the workers were started.
    """
    has, batch, position = sharding.has, sharding.batch, sharding.position
    round_ = (worker - first) % workers
    while has(round_):
        low, high = batch(round_, rank)
        after = Position(number, position(round_ + 1)) if has(round_ + 1) else Position(number + 1, 0)
        yield BatchRange(number, low, high, after)
        round_ += workers
