"""Advance: turns a count of batches into a state, for a process that does not iterate the stream itself."""

from __future__ import annotations

from dataclasses import dataclass

from tensordb_data.errors import StateError
from tensordb_data.stream.order.sequence_sharding import SequenceSharding
from tensordb_data.stream.order.sharding import PassSharding, Rounds
from tensordb_data.stream.passes.planner import Planner
from tensordb_data.stream.passes.resolver import PassResolver
from tensordb_data.stream.spec import End
from tensordb_data.stream.state import Position, State


@dataclass(frozen=True)
class Division:
    """How passes are cut into batches, and these divided among ranks."""

    batch_size: int
    world_size: int
    end: End


def advanced(
    resolver: PassResolver, state: State, batches: int, division: Division, shuffle_now: tuple[int, int] | None
) -> State:
    """The state after so many more batches were delivered to each rank.

    Args:
        resolver: Finds the data of passes.
        state: From which the batches are counted.
        batches: How many.
        division: How passes are cut.
        shuffle_now: How the stream shuffles, if neither the state nor the data says so.

    Raises:
        StateError: The number of samples in a pass is not known, or it delivers no batch.
    """
    pinned, registered = resolver.pinned, resolver.registry is not None
    known = state if state.n is not None else pinned
    at, shuffle = state.at, state.block_shuffle
    while batches > 0:
        if known is None:
            known = resolver.resolve(at.number, shuffle or shuffle_now)
        if known is None or known.n is None:
            raise StateError("the length of a pass is not known yet: call `pin()` before the stream is shared")
        shuffle = shuffle or known.block_shuffle
        rounds = PassRounds(resolver.planner, known, at, shuffle, division)
        if rounds.has(batches):
            at = Position(at.number, rounds.found.position(batches))
            break
        if rounds.total == 0 and at.position == 0:
            raise StateError(f"a pass of {known.n} samples delivers no batch of {division.batch_size}")
        at, batches = Position(at.number + 1), batches - rounds.total
        known = pinned or (None if registered else known)
    if known is None:  # a pass that begins later may go over other data
        known = State() if registered and not at.position else state
    return known._replace(at=at, block_shuffle=shuffle or known.block_shuffle)


def batches_of(planner: Planner, data: State, numbers: range, division: Division) -> int:
    """The number of batches that each rank receives in some whole passes over `data`."""
    if planner.spec.tokens is None:  # all are alike
        return len(numbers) * PassRounds(planner, data, Position(), None, division).total
    return sum(PassRounds(planner, data, Position(number), data.block_shuffle, division).total for number in numbers)


class PassRounds:
    """The rounds of the rest of a pass. Their number is remembered, where it takes long to find.

    Args:
        planner: Has the plans.
        data: The data of the pass.
        at: Where the rest begins.
        shuffle: How the pass is shuffled, if that is known.
        division: How passes are cut.
    """

    def __init__(
        self, planner: Planner, data: State, at: Position, shuffle: tuple[int, int] | None, division: Division
    ) -> None:
        self._planner, self._data, self._at, self._shuffle, self._division = planner, data, at, shuffle, division
        self._found: Rounds | None = None
        self._key = (data.ids, repr(data.versions), at.number, at.position, shuffle, division)

    @property
    def found(self) -> Rounds:
        """The rounds themselves."""
        if self._found is None:
            division, planner = self._division, self._planner
            cut = (self._at.position, division.batch_size, division.world_size, division.end)
            if planner.spec.tokens is None:
                self._found = PassSharding(self._data.n or 0, *cut)
            else:
                plan = planner.plan(self._data)
                shuffle = self._shuffle or planner.block_shuffle(plan)
                order = planner.beside.sequence_order(plan, self._at.number, shuffle)
                assert order is not None
                self._found = SequenceSharding(order, *cut)
        return self._found

    @property
    def total(self) -> int:
        """How many there are."""
        if self._planner.spec.tokens is None:
            return self.found.rounds
        totals = self._planner.totals
        if self._key not in totals:
            totals[self._key] = self.found.rounds
        return totals[self._key]

    def has(self, round_: int) -> bool:
        """Whether there is a round of this number."""
        total = self._planner.totals.get(self._key)
        return self.found.has(round_) if total is None else round_ < total
