"""Mix: several streams as one, sample by sample, in stated proportions.

Which stream the sample at place g of the mix comes from is a function of (seed, g) alone, and each stream's samples
come in its own order. So a mix resumes exactly, with any number of ranks and workers, from the place and the number of
samples taken from each stream.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tensordb_data.errors import NotFoundError, QueryError, SampleError, StateError
from tensordb_data.stream.apply import open_transform, position_keys, transformed
from tensordb_data.stream.batch import Batch, cut
from tensordb_data.stream.block import Block
from tensordb_data.stream.budget import Budget
from tensordb_data.stream.decode import Column
from tensordb_data.stream.deliver import Delivery
from tensordb_data.stream.living import Living
from tensordb_data.stream.order import draw, pass_key
from tensordb_data.stream.pipeline import ordered
from tensordb_data.stream.plan import Plan
from tensordb_data.stream.pull import Pull, in_turn
from tensordb_data.stream.rows import Blocks, rows_at
from tensordb_data.stream.stats import Clock, Stats
from tensordb_data.stream.stream import Element, Stream

if TYPE_CHECKING:
    from tensordb_data.stream.spec import StreamSpec
    from tensordb_data.warehouse import TensorDB

_FORMAT = 1
_AGREE = ("batch_size", "ragged", "rank", "world_size")


@dataclass(frozen=True)
class Place:
    """Samples delivered to all ranks together, and how many of them came from each stream."""

    total: int
    taken: tuple[int, ...]


def mix(streams: Sequence[tuple[Stream, float]], *, seed: int = 0) -> Mix:
    """One endless stream that takes each sample from one of several, with given chances.

    Batches hold samples of all streams side by side; each stream keeps its own order, passes and transform, and begins
    anew when it is through, so that a small one comes round more often. The data is that of the moment in which the
    mix begins (see `Stream.pin`).

    Args:
        streams: (stream, weight) pairs; weights are proportions of any positive sum. The streams must have the same
            batch size, fields, rank and world size, and no end (`passes=None`).
        seed: decides which stream each sample comes from.

    Raises:
        QueryError: the streams do not go together, or a weight is not a positive number.
    """
    return Mix(streams, seed)


class Mix(Pull[Place]):
    """See `mix`. Iterating, states and statistics are as with a `Stream`."""

    def __init__(self, streams: Sequence[tuple[Stream, float]], seed: int) -> None:
        pairs = list(streams)
        if not pairs or not all(
            isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], Stream) for pair in pairs
        ):
            raise QueryError("`mix` takes (stream, weight) pairs, at least one, of streams made by `Selection.stream`")
        self.streams: list[Stream] = [pair[0] for pair in pairs]
        self.weights = [_weight(pair[1]) for pair in pairs]
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
            raise QueryError(f"`seed` must be a whole number from 0 to 2**63 - 1. Found: {seed!r}")
        self.seed = seed
        super().__init__(Place(0, (0,) * len(pairs)))
        _check([stream.spec for stream in self.streams])
        self._budgets = [Budget(stream.spec.max_failures, self._stats) for stream in self.streams]
        self._stats.workers = sum(stream.spec.workers for stream in self.streams)

    def __repr__(self) -> str:
        parts = ", ".join(f"({stream.spec.query!r}, {weight:g})" for stream, weight in self._pairs())
        return f"mix([{parts}], seed={self.seed}) at {self._state.total}"

    @property
    def db(self) -> TensorDB:
        """The warehouse of the first stream."""
        return self.streams[0].db

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
        """Where the mix stands, by delivered batches: JSON-able; for `load_state_dict` of a mix of the same streams."""
        return self._doc(self._state)

    def plans(self, state: Mapping[str, Any] | None = None) -> dict[str, NDArray[np.uint8]]:
        """The plans of all streams, to be stored beside a state; see `Stream.plans`."""
        parts = (stream._plans(stream._pinned) for stream in self.streams if stream._pinned is not None)
        return {ids: plan for part in parts for ids, plan in part.items()}

    def load_state_dict(
        self, state: Mapping[str, Any], *, plans: Mapping[str, NDArray[np.uint8]] | None = None
    ) -> None:
        """Continue from `state`, on the data that it refers to, in all passes.

        Args:
            state: from `state_dict()`, of any rank, world size and batch size.
            plans: from `plans()`; see `Stream.load_state_dict`.

        Raises:
            StateError: the state is of another mix, or samples of its data were deleted and its plans are not kept.
        """
        place = self._place(state)
        for stream, part in zip(self.streams, state["streams"], strict=True):
            stream._source.accept(plans or {})
            stream._pin_to(part)
        self._state = place
        self._token += 1

    def advance(self, state: Mapping[str, Any], batches: int) -> dict[str, Any]:
        """The state after `batches` more batches were delivered to this rank."""
        place = self._place(state)
        total = place.total + batches * self.spec.batch_size * self.spec.world_size
        taken = np.array(place.taken)
        for low in range(place.total, total, 1 << 20):
            taken += self._counts(self._choices(low, min(low + (1 << 20), total)))
        return {**state, "total": total, "taken": taken.tolist()}

    def pin(self) -> Mix:
        """Fix the data that the mix, and every copy of it in another process, sees; see `Stream.pin`."""
        for stream in self.streams:
            stream.pin()
        return self

    def _share(self) -> None:
        self.pin()

    def _anew(self) -> None:
        self.pin()

    def worker(self, index: int, count: int) -> Mix:
        """A mix of every `count`-th batch of this one, from its position, beginning with batch `index`."""
        part = Mix([(stream.worker(0, 1), weight) for stream, weight in self._pairs()], self.seed)
        part._state, part._worker = self._state, (index, count)
        if count == 1:
            part._stats, part._budgets = self._stats, self._budgets
        else:
            part._stats = Stats(part._threads)
            part._budgets = [Budget(stream.spec.max_failures, part._stats) for stream in part.streams]
        return part

    def at(self, state: Mapping[str, Any]) -> Mix:
        """A mix at `state` over the data of this one, which it shares; see `Stream.at`."""
        part = self.worker(0, 1)
        part._state = self._place(state)
        return part

    def element_spec(self) -> dict[str, Element]:
        """Per delivered field the dtype and shape of one sample; see `Stream.element_spec`."""
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

    def _doc(self, place: Place) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "seed": self.seed,
            "weights": self.weights,
            "streams": [stream.state_dict() for stream in self.streams],
            "total": place.total,
            "taken": list(place.taken),
        }

    def _place(self, state: Mapping[str, Any]) -> Place:
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
        return Place(int(state["total"]), tuple(map(int, state["taken"])))

    # --- delivery ---------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self.pin()

    def _results(self, ended: Callable[[], bool]) -> Generator[Delivery[Place] | SampleError, None, None]:
        plans = [stream._source.plan(stream._pinned) for stream in self.streams]
        for stream, plan in zip(self.streams, plans, strict=True):
            if not len(plan):
                raise NotFoundError(f"a stream of the mix has no sample: none matches {stream.spec.query!r}")
        threads = self._threads + self._stats.workers
        with ExitStack() as opened:
            takers = [
                opened.enter_context(closing(_Taker(stream, plan, self._stats, budget)))
                for stream, plan, budget in zip(self.streams, plans, self._budgets, strict=True)
            ]
            with closing(ordered(self._tasks(takers), threads, threads + 1)) as tasks:
                yield from in_turn(tasks)

    def _tasks(self, takers: list[_Taker]) -> Generator[Callable[[], list[Delivery[Place] | SampleError]], None, None]:
        spec, (worker, workers) = self.spec, self._worker
        place, round_ = self._state, 0
        stride = spec.batch_size * spec.world_size
        while True:
            choices = self._choices(place.total, place.total + stride)
            then = Place(place.total + stride, tuple((np.array(place.taken) + self._counts(choices)).tolist()))
            if round_ % workers == worker:
                low = spec.rank * spec.batch_size
                before = np.array(place.taken) + self._counts(choices[:low])
                yield partial(self._batch, takers, choices[low : low + spec.batch_size], before, then)
            place, round_ = then, round_ + 1

    def _batch(
        self, takers: list[_Taker], choices: NDArray[np.int64], before: NDArray[np.int64], then: Place
    ) -> list[Delivery[Place] | SampleError]:
        clock = Clock()
        places: list[NDArray[np.int64]] = []
        parts: list[dict[str, Column]] = []
        named: list[tuple[int, str]] = []
        try:
            for number, taker in enumerate(takers):
                where = np.flatnonzero(choices == number)
                if not len(where):
                    continue
                taken = taker.take(int(before[number]), len(where), clock)
                if taken is None:
                    continue
                columns, name, there = taken
                places.append(where[there])
                parts.append(columns)
                named += [(at, name(row)) for row, at in enumerate(where[there].tolist())]
            if not parts:
                # Ranks and workers count batches: one whose samples are all gone or bad repeats others.
                found = next(filter(None, (taker.others(len(choices), clock) for taker in takers)), None)
                if found is None:
                    raise SampleError("no sample of any stream of the mix is left that can be read; begin anew")
                columns, name, there = found
                places, parts = [there], [columns]
                named = [(row, name(row)) for row in range(len(there))]
            names = [name for _, name in sorted(named)]
            with clock("batch"):
                # Deleted samples leave no gaps.
                order = np.sort(np.concatenate(places))
                batch = self._joined([np.searchsorted(order, place) for place in places], parts, names)
        except SampleError as error:
            return [error]
        self._stats.worked(clock)
        return [Delivery(batch, len(names), then)]

    def _joined(self, places: list[NDArray[np.int64]], parts: list[dict[str, Column]], names: list[str]) -> Batch:
        columns: dict[str, Column] = {}
        for part in parts[1:]:
            if part.keys() != parts[0].keys():
                raise SampleError(
                    f"the streams of a mix must deliver the same fields: one has {', '.join(parts[0])}, another"
                    f" {', '.join(part)}; name them with `fields`, or return them from the transforms"
                )
        for name in parts[0]:
            columns[name] = _interleaved([part[name] for part in parts], places, len(names))
        return cut(columns, 0, len(names), self.spec.ragged, names.__getitem__)

    def _choices(self, low: int, high: int) -> NDArray[np.int64]:
        sums = np.cumsum(np.array(self.weights, np.float64))
        return draw(np.arange(low, high), pass_key(self.seed, 0), len(self.weights), sums)

    def _counts(self, choices: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(choices, minlength=len(self.weights))


Taken = tuple[dict[str, Column], Callable[[int], str], NDArray[np.int64]]


class _Taker:
    """Samples of one stream by their number since its beginning, counted over all passes."""

    def __init__(self, stream: Stream, plan: Plan, stats: Stats, budget: Budget) -> None:
        self._spec, self._plan = stream.spec, plan
        self._weights = stream._source.cumulative(plan)
        self._blocks = Blocks(*(stream._state.blocks or (0, 0)))
        self._reader = stream.db._reader()
        self._living = Living(stream.db, stats)
        self._budget = budget
        self._transform = open_transform(stream.spec)

    def close(self) -> None:
        """End the processes that transform, if there are any."""
        if self._transform is not None:
            self._transform.close()

    def take(
        self, first: int, count: int, clock: Clock
    ) -> Taken | None:
        """The values of samples `first`..`first + count`-1, how errors speak of each, and which of them are there: all
        that were not deleted since, and are not bad. None when none is.
        """
        n = len(self._plan)
        rows: list[NDArray[np.int64]] = []
        keys: list[int] = []
        with clock("index"):
            at = first
            while at < first + count:
                number, low = divmod(at, n)
                high = min(n, low + first + count - at)
                positions = np.arange(low, high)
                rows.append(rows_at(positions, n, number, self._spec, self._blocks, self._weights))
                if self._transform is not None:
                    keys += position_keys(self._spec.seed, number, positions)
                at += high - low
            block = self._plan.block.take(np.concatenate(rows))
        self._budget.tried(count)
        alive = self._living.mask(block, self._plan.versions)
        if alive is None:
            try:
                return self._loaded(block, keys, clock), block.name, np.arange(count)
            except SampleError:
                block, alive = self._living.located(block)
        there = np.flatnonzero(alive)
        self._living.missed(count - len(there))
        if not len(there):
            return None
        block = block.take(there)
        keys = [keys[row] for row in there] if keys else []
        try:
            return self._loaded(block, keys, clock), block.name, there
        except SampleError:
            good = self._budget.readable(block, partial(self._try, block, keys))
        if not len(good):
            return None
        there, block = there[good], block.take(good)
        return self._loaded(block, [keys[row] for row in good] if keys else [], clock), block.name, there

    def others(self, count: int, clock: Clock) -> Taken | None:
        """At most `count` samples from the start of the plan that are there and good; None when none is."""
        for block in self._living.others(self._plan, count):
            keys = position_keys(self._spec.seed, 0, np.arange(len(block))) if self._transform is not None else []
            good = []
            for row in range(len(block)):
                with contextlib.suppress(SampleError):  # it counts in its own turn
                    self._try(block, keys, np.array([row]))
                    good.append(row)
            if good:
                block, keys = block.take(np.array(good)), [keys[row] for row in good] if keys else []
                return self._loaded(block, keys, clock), block.name, np.arange(len(good))
        return None

    def _try(self, block: Block, keys: list[int], rows: NDArray[np.int64]) -> dict[str, Column]:
        return self._loaded(block.take(rows), [keys[row] for row in rows] if keys else [], Clock())

    def _loaded(self, block: Block, keys: list[int], clock: Clock) -> dict[str, Column]:
        return transformed(block, self._reader, self._transform, keys, self._spec.ragged != "pad", clock)


def _interleaved(parts: list[Column], places: list[NDArray[np.int64]], size: int) -> Column:
    if all(isinstance(part, np.ndarray) for part in parts):
        arrays = [part for part in parts if isinstance(part, np.ndarray)]
        if all(array.dtype == arrays[0].dtype and array.shape[1:] == arrays[0].shape[1:] for array in arrays):
            joined = np.empty((size, *arrays[0].shape[1:]), arrays[0].dtype)
            for where, array in zip(places, arrays, strict=True):
                joined[where] = array
            return joined
    items: list[Any] = [None] * size
    for where, part in zip(places, parts, strict=True):
        for at, item in zip(where.tolist(), part, strict=True):
            items[at] = item
    return items


def _weight(weight: object) -> float:
    number = isinstance(weight, (int, float, np.number)) and not isinstance(weight, bool)
    if not number or not math.isfinite(weight) or weight <= 0:  # type: ignore[arg-type, operator]
        raise QueryError(f"a weight of a mix must be a number above 0. Found: {weight!r}")
    return float(weight)  # type: ignore[arg-type]


def _check(specs: list[StreamSpec]) -> None:
    for name in _AGREE:
        values = {getattr(spec, name) for spec in specs}
        if len(values) > 1:
            raise QueryError(
                f"the streams of a mix must have one `{name}`. Found: {', '.join(map(repr, sorted(values)))}"
            )
    for spec in specs:
        if spec.passes is not None or spec.follow:
            raise QueryError("the streams of a mix have no end: make them without `passes` and without `follow`")
