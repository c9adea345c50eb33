"""QueryDataset: what matches a query, as an IterableDataset for `torch.utils.data.DataLoader`."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, cast

from torch.utils.data import IterableDataset, get_worker_info

from tensordb_data.api.selection import Selection, streamed
from tensordb_data.common.options import suggesting
from tensordb_data.common.system.fork import at_fork
from tensordb_data.common.system.parent_process import exit_with
from tensordb_data.errors import LengthError, QueryError, StateError
from tensordb_data.stream.deliver.stream import Stream
from tensordb_data.stream.options import Shard, StreamOptions, tokens_of
from tensordb_data.stream.ranks import find_members
from tensordb_data.torch.calling_loader import (
    Division,
    calling_loader,
    division,
    is_within,
    no_end,
    no_numbers,
    starting_workers,
    twice,
)
from tensordb_data.torch.convert import to_pinned, to_tensors
from tensordb_data.torch.sample_mode import BLOCK, Items, SampleRun, follows_by_sample, length, other_mode
from tensordb_data.torch.shared_state import SharedState
from tensordb_data.torch.worker_stats import WorkerIteration, WorkerStats

if TYPE_CHECKING:
    from typing_extensions import Unpack


class QueryDataset(IterableDataset[dict[str, Any]]):
    """Samples of a query for a `DataLoader`, in one of two modes.

    **Batch-wise** is the fast mode: `DataLoader(QueryDataset(sel, batch_size=256), batch_size=None)`. The engine makes
    the batches, as dicts of tensors over its own memory. With W workers, worker w makes the batches w, w + W, …. So the
    loader delivers the same batches, in the same order, as one process.

    **Sample-wise** is the drop-in mode: `DataLoader(QueryDataset(sel), batch_size=256)`. The dataset yields samples, as
    dicts, and the loader collates them. Each worker has its own part of every pass, and its own short last batch.

    All workers and ranks together deliver each sample once per pass (an epoch over the selection). The first iteration
    begins at the start state: the start of pass 0, or the position that `load_state_dict` or `set_epoch` has set. With
    finite `passes`, each later one goes on with the passes that come next, so that a loop over epochs needs no
    `set_epoch`. An iteration that was broken off counts as one that has ended, since workers have prefetched some of
    its rest. Without end, each iteration begins at the start state again.

    Rank and world size are found when an iteration begins: those of `torch.distributed`, if it is running then. So the
    dataset can be made before `init_process_group()`, `Accelerator()` or `fit`. If Accelerate or the Trainer of Hugging
    Face divides what the dataset delivers, the dataset does not; `tensordb_data.torch.accelerate.prepare` makes a
    loader that leaves the division to the dataset.

    In batch-wise mode all ranks receive the same number of batches. In sample-wise mode with finite `passes`, one rank
    can receive one sample less than another, and so one batch less. `end="drop"` or `end="pad"` makes the ranks equal:
    it leaves out, or gives twice, one sample of some shares of a pass.

    The next pass sees data that has changed. Workers and ranks agree on the data of a pass when its first batch is
    made; the loader prefetches, so this is ahead of the loop. With one rank, each iteration sees new data. If several
    ranks go over a pass again, its data is the same as before. A stream that was pinned
    (`Stream.pin`) stays pinned. If the user may not write to the database, the stream is pinned.

    Args:
        source: a Selection, or a Stream. The position of the stream is the start state.
        batch_size: samples in a batch that the engine makes; `None` for sample-wise mode. Not with a stream, nor with
            `batch_tokens`, by which the engine makes batches as well.
        options: of `Selection.stream`: `fields`, `shuffle`, `seed`, `passes` (default: no end), `transform`, … .

    Raises:
        QueryError: an option is out of its range.
        TypeError: there is no such option; the message names the nearest one.
    """

    @suggesting(StreamOptions)
    def __init__(
        self, source: Selection[Any] | Stream, batch_size: int | None = None, **options: Unpack[StreamOptions]
    ) -> None:
        super().__init__()
        self._by_sample = isinstance(source, Selection) and batch_size is None and tokens_of(options) is None
        if self._by_sample and options.get("follow"):
            raise follows_by_sample()
        self._stream = streamed(source, BLOCK if self._by_sample else batch_size, options)
        self._run: dict[str, Any] | None = None  # the state of a resumed run, in sample-wise mode
        self._resumed = False
        self._shared_state = SharedState()
        self._counters = WorkerStats()
        self._read = 0  # the version of the shared state that was read last
        self._restarted = False  # in a worker: whether it has iterated before
        self._iterations = 0  # iterations that began in this process
        self._next: int | None = None  # in a worker: the pass with which its next iteration begins; None: as _run says
        self._moved = False  # in a worker: whether its start state was set there
        self._sent_by = self._received_by = 0  # the processes that pickled and unpickled this copy
        self._known = False  # whether it is known who shares the stream
        self._division: Division | None = None  # what divides this dataset among the ranks, above it
        self._refusal: Exception | None = None  # to be raised in workers
        self._warned = False
        self._started: Callable[[], Any] = _nothing  # the loader's iterator that has started workers last
        _live.add(self)

    def __getstate__(self) -> dict[str, Any]:
        self._before_workers(raising=True)
        self._share()
        return {**self.__dict__, "_sent_by": os.getpid(), "_started": _nothing}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _received_by=os.getpid())
        _live.add(self)

    def __repr__(self) -> str:
        return f"QueryDataset({self._stream!r}, {'sample' if self._by_sample else 'batch'}-wise)"

    def __bool__(self) -> bool:
        return True

    @property
    def __len__(self) -> Callable[[], int]:
        """The number of batches, or sample-wise of samples, that an iteration delivers to this rank from its start on.

        It is of the data of now, and counts bad samples too. With `batch_tokens` or `pack`, passes differ in their
        number of batches, and it is that of the iteration that comes next. `len(loader)` is the number of batches of
        the loader.

        Raises:
            LengthError: There is no end, or it is not known yet who shares the stream.
        """
        if self._stream.spec.passes is None:
            raise no_end()
        return self._length

    def _length(self) -> int:
        try:
            if get_worker_info() is None:
                self._find_ranks()
        except QueryError as error:
            raise LengthError(f"the length is not known yet: {error}") from error
        assert isinstance(self._stream, Stream)  # a mix has no end
        if not self._by_sample:
            return self._stream._batches_now(self._next_state()["pass"])
        return length(self, self._stream, self._division)

    def __getitem__(self, index: Any) -> NoReturn:
        raise no_numbers()

    def stats(self) -> dict[str, Any]:
        """Counts and times; see `Stream.stats`. With workers, the sums over all workers.

        Of a worker, `wait` is the time in which it waited for its batches, and `loop` the time in which it sent batches
        or nobody asked for one.
        """
        return self._stream._stats.report(self._counters.rows())

    # --- start state ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state from which the newest iteration began, or else the start state. It can be written as JSON.

        In batch-wise mode it is the state of a stream.
        """
        return self._start_at(self._shared_state.current)

    def _next_state(self) -> dict[str, Any]:
        """The state from which the next iteration begins."""
        return self._start_at(self._shared_state.next)

    def _start_at(self, number: int | None) -> dict[str, Any]:
        """The state at the start of a pass; None for the start state."""
        if number is None:
            stream = self._stream.state_dict()
            if not self._by_sample:
                return stream
            return SampleRun.fresh(self._stream) if self._run is None else dict(self._run)
        assert isinstance(self._stream, Stream)  # a mix has no end
        stream = self._stream._start_of(number)
        return {**SampleRun.fresh(self._stream), "stream": stream} if self._by_sample else stream

    def _after(self, number: int | None) -> int | None:
        """The pass with which the iteration begins that follows one from pass `number`; None if that has no end."""
        passes = self._stream.spec.passes
        if passes is None:
            return None
        at: int = self._stream.state_dict()["pass"] if number is None else number
        return (at // passes + 1) * passes

    def plans(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The plans that a state refers to, to be stored beside it; see `Stream.plans`."""
        return SampleRun(self._stream, state).plans() if self._by_sample else self._stream.plans(state)

    def load_state_dict(self, state: Mapping[str, Any], *, plans: Mapping[str, Any] | None = None) -> None:
        """Start the next iteration from `state`, in persistent workers too.

        Args:
            state: from `state_dict` or `advance`.
            plans: from `plans`; without them, see `Stream.load_state_dict`.

        Raises:
            StateError: the state is of another query, order or mode, or (sample-wise) of another world size. If the
                ranks are not known yet, the world size is checked when the iteration begins.
        """
        self._load(state, plans)
        self._resumed = True
        if get_worker_info() is None:
            self._post()
        else:  # of a loader that restores its workers, each from a state of its own
            self._next, self._moved = None, True

    def advance(self, state: Mapping[str, Any], batches: int, loader: Any) -> dict[str, Any]:
        """The state after a loop received `batches` more batches from `loader`. Changes nothing.

        Args:
            state: from `state_dict` or `advance`.
            batches: how many batches the loop has received since then, in this process. Batches that workers have
                prefetched do not count.
            loader: the DataLoader over this dataset.

        Raises:
            StateError: the loader delivers out of order, or does not fit the state (sample-wise mode is exact only
                with the same batch size and number of workers).
        """
        if loader.num_workers > 1 and not getattr(loader, "in_order", True):
            raise StateError("batches delivered out of order cannot be counted: make the DataLoader with in_order=True")
        if not self._known:
            self._find_ranks(loader)
        self._stream._join_iteration(self._shared_state.iteration)
        above = self._division
        if above is not None:
            batches *= above.batches
        if not self._by_sample:
            if loader.batch_size is not None:
                raise StateError(twice(self._stream.spec))
            return self._stream.advance(state, batches)
        batch_size = (above.batch_size if above is not None else None) or loader.batch_size or 1
        return SampleRun(self._stream, state).after(batches, max(1, loader.num_workers), batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration with epoch `epoch` (0, 1, …).

        With finite `passes`, an epoch has that many passes, each in its own order. Without end, an epoch begins with
        the pass of its number and has all passes after it. A start state within this epoch is kept until an iteration
        has begun there, so that a resumed run can call `set_epoch` as the first run did.

        Raises:
            QueryError: the caller would divide batches as if they were samples.
        """
        if (above := division()) is not None:
            above.check(self._by_sample, self._stream.spec.tokens)
        passes = self._stream.spec.passes
        stream = self._stream.state_dict()
        at, length = stream["pass"], passes or 1
        kept = at // length == epoch and self._shared_state.next is None
        if kept or (passes is None and self._resumed and at > epoch):
            return
        self._run, self._resumed = None, False
        self._stream.load_state_dict({**stream, "pass": epoch * length, "position": 0, "after": None})
        self._post()

    def _load(self, state: Mapping[str, Any], plans: Mapping[str, Any] | None = None) -> None:
        if self._by_sample != ("stream" in state):
            raise other_mode(self._by_sample)
        stream = state
        if self._by_sample:
            if "begun" not in state:
                raise StateError("the state was taken by an earlier version, sample-wise: begin a new run without it")
            run = SampleRun(self._stream, state)
            if self._known or self._stream.spec.world_size > 1:  # otherwise it is checked when they are known
                run.check_world()
            run.check(plans or {})
            self._run, stream = (dict(state) if state["batches"] else None), state["stream"]
        if get_worker_info() is not None:
            self._stream = self._stream.at(stream)
        else:
            self._stream.load_state_dict(stream, plans=plans)

    def _post(self) -> None:
        self._shared_state.post(self._start_at(None))
        self._read = self._shared_state.version

    # --- ranks ------------------------------------------------------------------------------------------------------

    def _find_ranks(self, loader: Any = None, *, alone: bool = False) -> None:
        """Find who shares the stream, in the process of the loop, and open the registry of its passes.

        Args:
            loader: The loader over this dataset, if it is not among the callers.
            alone: Whether the process of the loop reads the stream itself, without workers.
        """
        self._division = division(loader)
        if self._division is not None:
            self._division.check(self._by_sample, self._stream.spec.tokens)
        self._stream._find_ranks(None if self._division is None else self._division.divider)
        self._check_world()
        if alone:
            self._stream._register_alone()
        else:
            self._stream._share_passes()
        self._known = True
        if self._division is not None and not self._warned and find_members(Shard()).world_size > 1:
            self._warned = True
            self._division.warn()

    def _share(self) -> None:
        """Have what the workers share with this process in shared memory, now that one may be started."""
        self._shared_state.share()
        self._counters.share()

    def _check_world(self) -> None:
        if self._run is not None:
            SampleRun(self._stream, self._run).check_world()

    def _before_workers(self, *, raising: bool) -> None:
        """Find the ranks and the next pass, if a loader is about to start workers with this dataset: they cannot.

        Args:
            raising: Whether the dataset is being pickled, and an error reaches the loop.
        """
        if get_worker_info() is not None or (iterator := starting_workers()) is None or self._started() is iterator:
            return
        self._started, self._refusal = weakref.ref(iterator), None
        self._next = self._shared_state.next
        mine = raising or is_within(self, iterator._dataset)
        if self._known and not mine:
            return  # another dataset has its workers started
        try:
            self._find_ranks()
        except Exception as error:
            if raising:
                raise
            self._refusal = error  # Python would only print it here
        else:
            if mine:
                self._shared_state.go_on(self._next, self._after(self._next))

    # --- iteration --------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        loader = calling_loader()
        if not self._by_sample and loader.collates:
            raise QueryError(twice(self._stream.spec))
        if info is None:
            self._find_ranks(alone=True)
            self._next = self._shared_state.next
        else:
            if self._refusal is not None:
                raise self._refusal
            self._stream._keep_ranks()
            if self._received_by == os.getpid() != self._sent_by != os.getppid():
                exit_with(self._sent_by)
            # At first, the start state is the one that came with the process. The parent may have posted a newer one.
            if self._restarted and self._shared_state.version > self._read:
                self._read = self._shared_state.version
                self._load(self._shared_state.read())
                self._next = None
            self._restarted = True
        pins = info is None and loader.pins  # in a worker process, the parent pins
        self._iterations += 1
        self._shared_state.begin(info.seed - info.id if info is not None else 0, self._iterations)
        self._stream._join_iteration(self._shared_state.iteration)
        number, self._next = self._next, self._after(self._next)
        self._shared_state.go_on(number, self._next, back=self._moved)
        self._moved = False
        if self._by_sample:
            return WorkerIteration(partial(self._samples, worker, workers, number, plainly=loader.plainly))
        return WorkerIteration(partial(self._batches, worker, workers, number, pins=pins))

    def _batches(self, worker: int, workers: int, number: int | None, done: int, *, pins: bool) -> Items:
        """Yield the batches of one worker, from pass `number` on and after the first `done` of them.

        If `pins`, they are in pinned memory.
        """
        start = self._start_at(number)
        stream = self._stream if number is None else self._stream.at(start)
        if done:
            state = stream.advance(start, done * workers)
            if self._over(start, state):
                return
            stream = stream.at(state)
        part = stream.shard(worker, workers)
        if pins:
            part._finish = to_pinned
        with closing(self._counted(part)) as batches:
            for batch in batches:
                yield to_tensors(batch)

    def _samples(self, worker: int, workers: int, number: int | None, done: int, *, plainly: bool) -> Items:
        """Yield the samples of one worker, from pass `number` on and after the first `done` of them.

        If `plainly`, PyTorch's own function makes batches of them, which takes no None.
        """
        run = SampleRun(self._stream, self._start_at(number))
        return run.of(worker, workers, done, self._counted, optional=not plainly)

    def _counted(self, stream: Stream) -> Items:
        """Yield the batches of a stream. A worker writes its counts and times where the parent can read them."""
        info = get_worker_info()
        counter = None if info is None else self._counters.writer(info.id, stream._stats)
        with closing(cast(Items, iter(stream))) as batches:
            for batch in batches:
                if counter is not None:
                    counter.write()
                yield batch

    def _over(self, start: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
        """Whether `state` is in a later epoch than `start`. An epoch has `passes` passes."""
        length = self._stream.spec.passes
        return length is not None and start.get("pass", 0) // length != state.get("pass", 0) // length


def _nothing() -> None:
    """No iterator."""


_live: weakref.WeakSet[QueryDataset] = weakref.WeakSet()


def _before_fork() -> None:
    for dataset in list(_live):
        dataset._before_workers(raising=False)
        dataset._share()


at_fork(before=_before_fork)
