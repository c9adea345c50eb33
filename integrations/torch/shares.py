"""Shares: which samples each DataLoader worker yields in sample-wise mode, as arithmetic on positions.

Every pair (role, rank) takes part in the stream as a rank of its own: it receives blocks of samples, and an equal part
of each pass's tail. A role is what a worker does: worker w plays role w in a fresh run. A resumed run starts with the
role whose batch is due, because a DataLoader always asks its first worker first.
"""

from __future__ import annotations

from dataclasses import dataclass

from tensordb_data.stream.order import Layout
from tensordb_data.stream.spec import End


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


def place(layout: Layout, rank: int, number: int, delivered: int) -> Place:
    """Where a share stands once `delivered` of its samples were, counted from the start of pass `number`.

    Args:
        layout: of a whole pass.
        rank: of the share, among the `layout.world` shares.
        number: the pass in which counting begins.
        delivered: samples of this share.
    """
    whole = max(0, layout.rounds - 2)
    tail = [layout.batch(round_, rank) for round_ in range(whole, layout.rounds)]
    in_pass = whole * layout.batch_size + sum(high - low for low, high in tail)
    if in_pass:
        number += delivered // in_pass
        delivered %= in_pass
    rounds = min(delivered // layout.batch_size, whole)
    return Place(number, layout.position(rounds), delivered - rounds * layout.batch_size)


def pass_layout(n: int, block: int, parts: int, end: End) -> Layout:
    """The layout of a whole pass in blocks of samples for `parts` shares."""
    return Layout(n, 0, block, parts, end)
