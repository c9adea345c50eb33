"""Mix: several streams as one, sample by sample, in stated proportions.

The stream from which sample g of the mix comes is a function of (seed, g) alone. The samples of each stream come in its
own order, pass after pass. So a mix resumes exactly, with any number of ranks and workers, from the number of samples
and the states of its streams.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tensordb_data.common.deprecation import renamed_to
from tensordb_data.errors import QueryError, SampleError, StateError
from tensordb_data.stream.deliver.advance import Division
from tensordb_data.stream.deliver.base import BatchStream, flatten
from tensordb_data.stream.deliver.batch_builder import BatchWithState, Results
from tensordb_data.stream.deliver.elements import Element
from tensordb_data.stream.deliver.ordered_pool import ordered
from tensordb_data.stream.deliver.stream import Stream
from tensordb_data.stream.fetch.failure_budget import FailureBudget
from tensordb_data.stream.mixture.batch_builder import BatchRequest, MixBatchBuilder
from tensordb_data.stream.mixture.component import Component, PositionRange
from tensordb_data.stream.mixture.proportions import Proportions, check_agreement
from tensordb_data.stream.passes.registry import OpenedPasses
from tensordb_data.stream.ranks import Divider
from tensordb_data.stream.state import OnChange, State
from tensordb_data.stream.stats import Clock, Stats
from tensordb_data.stream.transform.collate import Batch

if TYPE_CHECKING:
    from tensordb_data.stream.spec import StreamSpec
    from tensordb_data.warehouse.context import Warehouse

_FORMAT = 2
_DRAWN = 1 << 20


@dataclass(frozen=True)
class MixState:
    """The state of a mix."""

    total: int
    """Samples that were delivered to all ranks together."""
    components: tuple[State, ...]
    """The state of each stream."""


class MixBatch(BatchWithState[MixState]):
    """A batch of a mix. `opened` has, for each stream, the passes that were opened ahead of time for this batch, or for
    other readers before it.
    """

    __slots__ = ("opened",)

    def __init__(self, batch: Batch, samples: int, state_after: MixState, opened: tuple[OpenedPasses, ...]) -> None:
        super().__init__(batch, samples, state_after)
        self.opened = opened


def mix(streams: Sequence[tuple[Stream, float]], *, seed: int = 0) -> Mix:
    """Make one endless stream of several. It takes each sample from one of them, with the given probabilities.

    A batch holds samples of all streams. Each stream keeps its own order, passes and transform. When a stream reaches
    the end of a pass, it begins the next one, so a small stream goes through more passes. A pass goes over the data of
    the moment in which it begins (see `Stream`). A stream that was pinned stays pinned.

    Args:
        streams: (stream, weight) pairs. The weights are proportions; their sum may be any positive number. The streams
            must have the same batch size, fields, rank and world size, and no end (`passes=None`).
        seed: Decides which stream each sample comes from.

    Raises:
        QueryError: the streams do not go together, or a weight is not a positive number.
    """
    return Mix(streams, seed)


class Mix(BatchStream[MixState]):
    """A stream made of several, see `mix`. Iteration, states and statistics are those of a `Stream`."""

    def __init__(self, streams: Sequence[tuple[Stream, float]], seed: int) -> None:
        pairs = list(streams)
        if not pairs or not all(
            isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], Stream) for pair in pairs
        ):
            raise QueryError("`mix` takes (stream, weight) pairs, at least one, of streams made by `Selection.stream`")
        self.streams: list[Stream] = [pair[0] for pair in pairs]
        self._proportions = Proportions([pair[1] for pair in pairs], seed)
        self.weights, self.seed = self._proportions.weights, self._proportions.seed
        super().__init__(MixState(0, tuple(stream._state for stream in self.streams)))
        self._tally = (0, 0, np.zeros(len(pairs), np.int64))
        check_agreement([stream.spec for stream in self.streams])
        self._budgets = [FailureBudget(stream.spec.max_failures, self._stats) for stream in self.streams]
        self._stats.workers = sum(stream.spec.workers for stream in self.streams)

    def __repr__(self) -> str:
        parts = ", ".join(f"({stream.spec.query!r}, {weight:g})" for stream, weight in self._pairs())
        return f"mix([{parts}], seed={self.seed}) at {self._state.total}"

    @property
    def warehouse(self) -> Warehouse:
        """The warehouse of the first stream."""
        return self.streams[0].warehouse

    @property
    def spec(self) -> StreamSpec:
        """The spec of the first stream, which all share as far as batches go."""
        return self.streams[0].spec

    def __getstate__(self) -> dict[str, Any]:
        return {"streams": self._pairs(), "seed": self.seed, "state": self._state, "worker": self._worker}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["streams"], state["seed"])  # type: ignore[misc]
        self._state, self._worker = state["state"], state["worker"]

    def _pairs(self) -> list[tuple[Stream, float]]:
        return list(zip(self.streams, self.weights, strict=True))

    # --- position ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The position after the last delivered batch, for `load_state_dict` of a mix of the same streams."""
        return self._to_doc(self._state)

    def plans(self, state: Mapping[str, Any] | None = None) -> dict[str, NDArray[np.uint8]]:
        """The plans of the passes in progress, to be stored beside a state; see `Stream.plans`."""
        mix_state = self._state if state is None else self._read_state(state)
        found: dict[str, NDArray[np.uint8]] = {}
        for stream, component in zip(self.streams, mix_state.components, strict=True):
            found.update(stream._plans(component) if component.at.position else {})
        return found

    def load_state_dict(
        self,
        state: Mapping[str, Any],
        *,
        on_change: OnChange = "finish",
        plans: Mapping[str, NDArray[np.uint8]] | None = None,
    ) -> None:
        """Continue from `state`. Each stream ends its pass as it began, and sees changes in its next pass.

        Args:
            state: from `state_dict()`, of any rank, world size and batch size.
            on_change: what to do for each stream whose data has changed since its pass began; see
                `Stream.load_state_dict`.
            plans: from `plans()`; see `Stream.load_state_dict`.

        Raises:
            StateError: the state is of another mix, or samples of its data were deleted and its plans are not given.
        """
        total = self._read_state(state).total
        parts = zip(self.streams, state["streams"], strict=True)
        self._move(MixState(total, tuple(stream._loaded(part, on_change, plans) for stream, part in parts)))

    def advance(self, state: Mapping[str, Any], batches: int) -> dict[str, Any]:
        """The state after `batches` more batches were delivered to this rank; see `Stream.advance`."""
        self._know_ranks()
        mix_state = self._read_state(state)
        total = mix_state.total + batches * self.spec.batch_size * self.spec.world_size
        counts = self._count_samples(mix_state.total, total).tolist()
        parts = zip(self.streams, mix_state.components, counts, strict=True)
        # A mix takes its samples one by one: a component is not cut into batches.
        states = [stream._advance(component, count, Division(1, 1, "short")) for stream, component, count in parts]
        return self._to_doc(MixState(total, tuple(states)))

    def _count_samples(self, low: int, high: int) -> NDArray[np.int64]:
        """Count how many of the samples `low` to `high` - 1 come from each stream: int64 [streams].

        A checkpointer asks from the same `low` on again and again, so the last counts are kept.
        """
        first, last, counts = self._tally
        if first != low or last > high:
            last, counts = low, np.zeros(len(self.streams), np.int64)
        for start in range(last, high, _DRAWN):
            counts = counts + self._proportions.counts(self._proportions.choices(start, min(start + _DRAWN, high)))
        self._tally = (low, high, counts)
        return counts

    def _move(self, mix_state: MixState) -> None:
        self._token += 1
        self._state = self._with_plan_digests(mix_state)

    def _with_plan_digests(self, mix_state: MixState) -> MixState:
        parts = zip(self.streams, mix_state.components, strict=True)
        return MixState(mix_state.total, tuple(stream._with_plan_digest(component) for stream, component in parts))

    def pin(self) -> Mix:
        """Fix the data that the mix, and every copy of it in another process, sees; see `Stream.pin`."""
        for stream in self.streams:
            stream.pin()
        self._state = self._with_plan_digests(self._state)
        return self

    def _find_ranks(self, divider: Divider | None = None) -> None:
        for stream in self.streams:
            stream._find_ranks(divider)
        check_agreement([stream.spec for stream in self.streams])

    def _know_ranks(self) -> None:
        for stream in self.streams:
            stream._know_ranks()
        check_agreement([stream.spec for stream in self.streams])

    def _number_ranks(self, rank: int, world_size: int) -> None:
        for stream in self.streams:
            stream._number_ranks(rank, world_size)

    def _keep_ranks(self) -> None:
        for stream in self.streams:
            stream._keep_ranks()

    def _share_passes(self) -> None:
        for stream in self.streams:
            stream._share_passes()
        self._state = self._with_plan_digests(self._state)

    def _begin_iteration(self) -> None:
        for stream in self.streams:
            stream._begin_iteration()
        self._state = self._with_plan_digests(self._state)

    def _register_alone(self) -> None:
        for stream in self.streams:
            stream._register_alone()
        self._state = self._with_plan_digests(self._state)

    def _join_iteration(self, iteration: str) -> None:
        for stream in self.streams:
            stream._join_iteration(iteration)
        self._state = self._with_plan_digests(self._state)

    def shard(self, index: int, count: int) -> Mix:
        """One of `count` mixes that share the batches of this one, from its position on; see `Stream.shard`."""
        part = Mix([(stream.shard(0, 1), weight) for stream, weight in self._pairs()], self.seed)
        part._state, part._worker = self._state, (index, count)
        if count == 1:
            part._stats, part._budgets = self._stats, self._budgets
        else:
            part._stats = Stats(part._threads)
            part._budgets = [FailureBudget(stream.spec.max_failures, part._stats) for stream in part.streams]
        return part

    @renamed_to("shard")
    def worker(self, index: int, count: int) -> Mix:
        """The old name of `shard`."""
        return self.shard(index, count)

    def at(self, state: Mapping[str, Any]) -> Mix:
        """A mix at `state` that shares the data of this one; see `Stream.at`."""
        part = self.shard(0, 1)
        part._state = self._read_state(state)
        return part

    def element_spec(self) -> dict[str, Element]:
        """The dtype and shape of one sample, for each delivered field; see `Stream.element_spec`."""
        specs = [stream.element_spec() for stream in self.streams]
        merged: dict[str, Element] = {}
        for name, (dtype, shape) in specs[0].items():
            others = [spec.get(name, (None, ())) for spec in specs[1:]]
            if any(other[0] != dtype or len(other[1]) != len(shape) for other in others):
                merged[name] = (None, ())
            else:
                shapes = zip(shape, *(other[1] for other in others), strict=True)
                merged[name] = (dtype, tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in shapes))
        return merged

    def close(self) -> None:
        """End the iteration in progress and free the plans."""
        super().close()
        for stream in self.streams:
            stream.close()

    def _to_doc(self, mix_state: MixState) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "seed": self.seed,
            "weights": self.weights,
            "streams": [
                component.to_doc(stream.spec)
                for stream, component in zip(self.streams, mix_state.components, strict=True)
            ],
            "total": mix_state.total,
        }

    def _read_state(self, state: Mapping[str, Any]) -> MixState:
        if not isinstance(state, Mapping) or state.get("format") != _FORMAT or "streams" not in state:
            raise StateError(
                f"expected what `state_dict()` of a mix returned, of format {_FORMAT}. Found: {state!r:.60}"
            )
        for name, own in {"seed": self.seed, "weights": self.weights}.items():
            if state[name] != own:
                raise StateError(f"the state is of a mix with other `{name}`: {state[name]}, and this one has {own}")
        if len(state["streams"]) != len(self.streams):
            raise StateError(
                f"the state is of a mix of {len(state['streams'])} streams, and this one has {len(self.streams)}"
            )
        parts = zip(self.streams, state["streams"], strict=True)
        return MixState(int(state["total"]), tuple(State.from_doc(part, stream.spec) for stream, part in parts))

    # --- delivery ---------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if any(stream._shard is not None for stream in self.streams):
            self._find_ranks()
            if any(stream._planner.has_peers and stream._registry is None for stream in self.streams):
                self._share_passes()
        components = []
        for stream, component in zip(self.streams, self._state.components, strict=True):
            # A stream that was iterated on its own may have the state of a cursor.
            from_cursor = component.at.position and component.ids is None
            components.append(stream._state_of_plan(component) if from_cursor else component)
        self._state = MixState(self._state.total, tuple(components))

    def _results(self, ended: Callable[[], bool]) -> Generator[BatchWithState[MixState] | SampleError, None, None]:
        threads, rounds = self._threads + self._stats.workers, 0
        components = [Component(stream) for stream in self.streams]
        with closing(MixBatchBuilder(self.streams, self._stats, self._budgets)) as builder:
            while True:
                for component, state in zip(components, self._state.components, strict=True):
                    component.begin(state)
                with closing(ordered(self._tasks(components, builder, rounds), threads, threads + 1)) as tasks:
                    for result in flatten(tasks):
                        if isinstance(result, MixBatch) and self._begins_stale(components, result):
                            break  # and open the pass again, on the data of now
                        rounds = self._worker[0] + 1
                        yield result

    @staticmethod
    def _begins_stale(components: list[Component], batch: MixBatch) -> bool:
        """Whether a batch begins a pass that was opened too early. If not, passes that have ended are forgotten."""
        if any(component.is_stale(opened) for component, opened in zip(components, batch.opened, strict=True)):
            return True
        for component, state in zip(components, batch.state_after.components, strict=True):
            component.forget_before(state)
        return False

    def _tasks(
        self, components: list[Component], builder: MixBatchBuilder, first: int
    ) -> Iterator[Callable[[], Results[MixState]]]:
        """Yield a task for each batch of this worker. The round that comes next has the number `first`."""
        spec, (worker, workers) = self.spec, self._worker
        mix_state, round_ = self._state, first
        stride, low = spec.batch_size * spec.world_size, spec.rank * spec.batch_size
        high = low + spec.batch_size
        while True:
            choices = self._proportions.choices(mix_state.total, mix_state.total + stride)
            before, mine, behind = map(self._proportions.counts, (choices[:low], choices[low:high], choices[high:]))
            ranges: list[list[PositionRange]] = []
            state_after: list[State] = []
            for number, (component, state) in enumerate(zip(components, mix_state.components, strict=True)):
                _, state = component.advance(state, int(before[number]))
                own, state = component.advance(state, int(mine[number]))
                _, state = component.advance(state, int(behind[number]))
                ranges.append(own)
                state_after.append(state)
            mix_state = MixState(mix_state.total + stride, tuple(state_after))
            if round_ % workers == worker:
                opened = tuple(component.opened() for component in components)
                request = BatchRequest(choices[low:high], ranges, [component.newest for component in components])
                yield partial(self._batch, builder, request, mix_state, opened)
            round_ += 1

    def _batch(
        self, builder: MixBatchBuilder, request: BatchRequest, state_after: MixState, opened: tuple[OpenedPasses, ...]
    ) -> Results[MixState]:
        clock = Clock()
        try:
            batch, samples = builder.build(request, clock)
        except SampleError as error:
            return [error]
        self._stats.add_task(clock)
        return [MixBatch(batch, samples, state_after, opened)]
