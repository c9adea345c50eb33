"""SampleRun: a run in sample-wise mode, where the loader makes the batches. It gives each worker its samples."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

from torch.utils.data import Dataset

from tensordb_data.errors import NotFoundError, QueryError, StateError
from tensordb_data.stream.deliver.stream import Stream
from tensordb_data.stream.state import Position, State
from tensordb_data.torch.calling_loader import Division, measured_loader
from tensordb_data.torch.convert import to_samples, to_tensors, unpadded
from tensordb_data.torch.sample_sharding import ShardProgress

BLOCK = 64
"""The number of samples that a worker reads at once."""

Items = Generator[dict[str, Any], None, None]


class SampleRun:
    """A run over a stream, from a state on.

    A state has the first pass that has not ended for all workers and ranks. It also has the data of all passes that
    have begun, since some workers can be in later passes already. A pass that has not begun goes over the data of the
    moment in which it begins.
    """

    def __init__(self, stream: Stream, state: Mapping[str, Any]) -> None:
        self._stream, self._spec, self._state = stream, stream.spec, state
        self._first = State.from_doc(state["stream"], stream.spec).at.number
        self._begun = [State.from_doc(doc, stream.spec) for _, doc in state["begun"]]
        each = [data for data, (count, _) in zip(self._begun, state["begun"], strict=True) for _ in range(count)]
        self._known = dict(enumerate(each, self._first))

    @staticmethod
    def fresh(stream: Stream) -> dict[str, Any]:
        """The state of a run that has not begun."""
        none: dict[str, Any] = {"batches": 0, "batch_size": None, "num_workers": None, "begun": []}
        return {"stream": stream.state_dict(), "world_size": None, "block": BLOCK, **none}

    def check(self, plans: Mapping[str, Any]) -> None:
        """Accept the plans that came with the state, and check that no plan of a pass that has begun is missing.

        Raises:
            StateError: A plan cannot be had any more; or this dataset divides its passes in another way.
        """
        self._check_same(block=BLOCK)
        self._stream._planner.accept_plans(plans)
        for data in self._begun:
            self._stream._planner.plan(data)

    def check_world(self) -> None:
        """Check that as many ranks share the stream as when the state was taken.

        Raises:
            StateError: There are more or fewer.
        """
        self._check_same(world_size=self._spec.world_size)

    def _check_same(self, **now: int) -> None:
        for name, value in now.items():
            if self._state["batches"] and self._state[name] != value:
                raise _inexact(name, self._state[name], value)

    def plans(self) -> dict[str, Any]:
        """The plans of the passes that have begun; see `Stream.plans`."""
        return self._stream._plans(*self._begun)

    def after(self, batches: int, workers: int, batch_size: int) -> dict[str, Any]:
        """The state after the loop received so many more batches.

        Raises:
            StateError: The run did not begin with these numbers of workers and of samples in a batch.
        """
        self._check_same(batch_size=batch_size, num_workers=workers)
        if not batches:
            return dict(self._state)
        progress = self._progress(workers, batch_size)
        length = self._length(progress)
        progress = progress.after(batches, length)
        begun = [self._data(number).at_position(Position()).to_doc(self._spec) for number in progress.begun(length)]
        block_shuffle = self._data(progress.first).block_shuffle if begun else self._stream._state.block_shuffle
        stream = State(Position(progress.first), block_shuffle=block_shuffle).to_doc(self._spec)
        world = {"world_size": self._spec.world_size}
        return {**self._state, "stream": stream, **world, **progress.to_doc(), "begun": _runs(begun)}

    def of(
        self, worker: int, workers: int, done: int, count: Callable[[Stream], Items], *, optional: bool = True
    ) -> Items:
        """Yield the samples of one worker, after the first `done` of them.

        Args:
            worker: Of the loader.
            workers: How many there are.
            done: The samples to leave out.
            count: Iterates over a stream.
            optional: Whether a field may be None.

        Raises:
            QueryError: A field is None in some samples, and may not be. It is known before the first sample, unless
                there is a transform or a budget of failures.
        """
        self._check_same(num_workers=workers)
        if not optional and self._spec.transform is None and not self._spec.max_failures:
            table = self._stream._planner.plan(self._data(self._first)).table
            for name in table.layout.fields:
                _refuse_missing(name, table.missing(name))
        progress = self._progress(workers, self._state["batch_size"] or 1)
        length, sharding = self._length(progress), progress.sharding
        role = progress.role(worker, self._spec.rank, length)
        if role is None:
            return
        part = role * self._spec.world_size + self._spec.rank
        place = progress.place(part, done, length)
        if place is None:
            return
        number, position, drop = place
        start = self._data(number).at_position(Position(number, position)).to_doc(self._spec)
        stream = self._stream.at(start, rank=part, world_size=sharding.parts, end="short")
        stream._resumed = self._known
        with closing(count(stream)) as batches:
            for batch in batches:
                for name, column in batch.items():
                    if not optional and isinstance(column, list):
                        _refuse_missing(name, sum(value is None for value in column))
                samples = list(to_samples(to_tensors(batch)))
                if self._spec.ragged == "pad":
                    samples = list(unpadded(iter(samples)))
                at = stream._state.at
                if sharding.end != "short" and at.position == 0:  # the last batch of its pass
                    n = length(at.number - 1)
                    more = int(sharding.given(n)[part] - sharding.received(n)[part])
                    samples = samples[:more] if more < 0 else samples + samples[-1:] * more
                yield from samples[drop:]
                drop = max(0, drop - len(samples))

    def _progress(self, workers: int, batch_size: int) -> ShardProgress:
        spec, first = self._spec, self._first
        until = None if spec.passes is None else (first // spec.passes + 1) * spec.passes
        if self._state["batches"]:
            return ShardProgress.from_doc(self._state, BLOCK, spec.end, spec.world_size, first, until)
        n = self._data(first).n or 0
        return ShardProgress.fresh(n, BLOCK, spec.end, workers, spec.world_size, batch_size, first, until)

    def _data(self, number: int) -> State:
        """The data of a pass. If it is not decided yet, it is registered now."""
        resolver = replace(self._stream._resolver(), resumed=self._known)
        found = resolver.resolve(number, self._stream._state.block_shuffle)
        assert found is not None
        return found

    def _length(self, progress: ShardProgress) -> Callable[[int], int]:
        least = progress.sharding.parts if self._spec.end == "drop" else 1

        def length(number: int) -> int:
            n = self._data(number).n or 0
            if n == 0 and self._spec.passes is None:
                raise NotFoundError(f"an endless stream needs samples, and none matches {self._spec.query!r}")
            if n < least and self._spec.passes is None:
                raise QueryError(
                    f'end="drop" drops everything: a pass has {n} samples, and there are {least} workers of all ranks;'
                    " use fewer, or another end="
                )
            return n

        return length


def length(dataset: Dataset[Any], stream: Stream, above: Division | None) -> int:
    """The number of samples that one rank receives in a whole iteration of `dataset`, sample by sample.

    A DataLoader divides it by its batch size. So if one asks, each short batch of a worker counts as a full one.

    Args:
        dataset: The dataset that is asked for its length.
        stream: What it reads. It has an end.
        above: What divides the dataset among the ranks.
    """
    spec, n, loader = stream.spec, stream._samples_now(), measured_loader(dataset)
    assert spec.passes is not None
    workers, size, drop_last = 0, 1, False
    if loader is not None:
        workers, size, drop_last = loader.num_workers, loader.batch_size or 1, loader.drop_last
    size = (above.batch_size if above is not None else None) or size
    run = ShardProgress.fresh(n, BLOCK, spec.end, workers, spec.world_size, size, 0, spec.passes)
    return run.length(n, spec.rank, drop_last=drop_last)


def _refuse_missing(name: str, samples: int) -> None:
    if samples:
        raise QueryError(
            f"field {name!r} is None in {samples} samples, and the DataLoader's own collate_fn makes no batch of them:"
            f" select those that have it ({{{name!r}: {{'$exists': True}}}}), fill it in a transform, leave it out of"
            " fields=, or give the DataLoader a collate_fn"
        )


def _runs(docs: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """Join equal neighbours to (count, document)."""
    batch_ranges: list[tuple[int, dict[str, Any]]] = []
    for doc in docs:
        if batch_ranges and batch_ranges[-1][1] == doc:
            batch_ranges[-1] = (batch_ranges[-1][0] + 1, doc)
        else:
            batch_ranges.append((1, doc))
    return batch_ranges


def _inexact(name: str, then: Any, now: Any) -> StateError:
    return StateError(
        f"sample by sample, a run resumes exactly only with the same `{name}`: it was {then}, and is {now}. Use"
        f" {name}={then}, or batch-wise mode (batch_size in QueryDataset, batch_size=None in the DataLoader), which"
        " resumes with any number of workers"
    )


def other_mode(by_sample: bool) -> StateError:
    """A state is of the other mode than that of the dataset."""
    made, this = ("batch", "sample") if by_sample else ("sample", "batch")
    return StateError(
        f"the state was taken {made}-wise, and this dataset is {this}-wise: give QueryDataset a `batch_size` for"
        " batch-wise mode, none for sample-wise"
    )


def follows_by_sample() -> QueryError:
    """A stream that follows is read sample by sample."""
    return QueryError("a stream that follows is read batch by batch: give QueryDataset a `batch_size`")
