"""Shares: which samples each DataLoader worker yields in sample-wise mode, as arithmetic on positions.

Every pair (role, rank) takes part in the stream as a rank of its own: it receives blocks of samples, and an equal part
of each pass's tail. A role is what a worker does: worker w plays role w in a fresh run. A resumed run starts with the
role whose batch is due, because a DataLoader always asks its first worker first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from tensordb_data.stream.order import Layout
from tensordb_data.stream.spec import End

T = TypeVar("T")


@dataclass(frozen=True)
class Turns:
    """A sample-wise run: how many workers take turns, and how many batches of what size the loop has received."""

    n: int
    """Samples in a pass."""
    workers: int
    world: int
    batches: int = 0
    """Batches that this rank's loop has received."""
    batch_size: int = 1

    @property
    def roles(self) -> int:
        """Workers that receive samples: fewer than there are when there are not enough samples for all."""
        return max(1, min(self.workers, self.n // self.world))

    def role(self, worker: int) -> int | None:
        """What a worker does, or `None` when there is nothing to do for it."""
        return (worker + self.batches) % self.roles if worker < self.roles else None

    def delivered(self, role: int) -> int:
        """Samples of this role that the loop has received; more than there were when the last batch was short."""
        full, more = divmod(self.batches, self.roles)
        return (full + (role < more)) * self.batch_size


@dataclass(frozen=True)
class Place:
    """Where one share goes on: pass and position of the stream, and the samples to drop from there on."""

    number: int
    position: int
    drop: int


@dataclass(frozen=True)
class Share:
    """What one (role, rank) receives of each pass of `n` samples."""

    n: int
    block: int
    """Samples that are read at once."""
    parts: int
    rank: int
    end: End
    """Shares of a pass that does not divide: `short`, some have a sample more than others; `drop` or `pad`, all have
    the same number, by leaving one sample out or giving one twice."""

    @property
    def _layout(self) -> Layout:
        return Layout(self.n, 0, self.block, self.parts, "short")

    @property
    def _whole(self) -> int:
        """Rounds that are whole for sure: only the last two can be short."""
        return max(0, self._layout.rounds - 2)

    @property
    def received(self) -> int:
        """Samples that the engine delivers in a pass."""
        layout = self._layout
        tail = [layout.batch(round_, self.rank) for round_ in range(self._whole, layout.rounds)]
        return self._whole * self.block + sum(high - low for low, high in tail)

    @property
    def given(self) -> int:
        """Samples that are passed on in a pass."""
        if self.end == "drop":
            return self.n // self.parts
        return -(-self.n // self.parts) if self.end == "pad" else self.received

    def place(self, number: int, delivered: int) -> Place:
        """Where this share stands once `delivered` of its samples were, counted from the start of pass `number`."""
        given = self.given
        if given:
            number += delivered // given
            delivered %= given
        rounds = min(delivered // self.block, self._whole)
        return Place(number, self._layout.position(rounds), delivered - rounds * self.block)

    def even(self, samples: Iterable[T], position: int) -> Iterator[T]:
        """What is passed on of what the engine delivers from `position` of a pass on."""
        received, given = self.received, self.given
        index = position // self.parts
        for sample in samples:
            index += 1
            if index <= given:
                yield sample
            if index == received:
                yield from (sample for _ in range(given - received))
                index = 0
