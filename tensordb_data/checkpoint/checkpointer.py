"""Save a training state every N steps, for any framework. The hooks in `integrations/` tell what a state is."""

from __future__ import annotations

import math
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tensordb_data.checkpoint.background import Saver
from tensordb_data.checkpoint.batch_counter import BatchCounter
from tensordb_data.checkpoint.metrics import StorableMetrics
from tensordb_data.checkpoint.options import OLD_EVERY, OLD_OPTIONS, Every, SaveOptions
from tensordb_data.checkpoint.run_saver import RunSaver
from tensordb_data.checkpoint.schedule import SaveSchedule
from tensordb_data.checkpoint.signals import SignalHandler
from tensordb_data.common.deprecation import moved_options, renamed_to
from tensordb_data.common.html import Figures
from tensordb_data.common.options import suggesting
from tensordb_data.errors import CheckpointError, CorruptBlobError, NotFoundError, StorageError
from tensordb_data.logs.writer import RunLog
from tensordb_data.params.lineage import of_position, surroundings
from tensordb_data.params.load import load_parts, suggest_intact_set
from tensordb_data.params.parameter_set import parent_id, set_fields
from tensordb_data.params.retention import Keep

if TYPE_CHECKING:
    from bson import ObjectId

    from tensordb_data.warehouse.context import Warehouse

Collect = Callable[[int], Mapping[str, Any]]


class Peers(Protocol):
    """The processes that train together, each of which has a checkpointer of the same run."""

    rank: int
    """Of this process; 0 is the one that stores."""

    def agree(self, due: bool, signal: int) -> tuple[bool, int]:
        """Whether a save is due on any process, and the highest signal that one has received, or 0."""
        ...


class Checkpointer:
    """Saves a training state every N steps in the background, logs its metrics, and finds it again.

    Args:
        warehouse: The warehouse.
        run: Name of the run; sets and log rows carry it.
        collect: Gives the state after the step it is called with: a dict of parts, of tensors and plain values.
        every: How often to save: a number of steps, or an `Every`.
        on_best: Save when this metric is better than in any set of the run: `"val_acc"`, or `("val_loss", "min")`.
        tags: Tags of every set.
        lineage: What every set is made from, besides code and libraries.
        keep: Which training states of the run stay, applied after each save; by default all of them.
        peers: The other processes of this training, if there are any: all of them make each step, one of them stores.
        batch_counter: Counts the batches of the loop; lets a signal be served while the loop waits for data.
        options: How to save; see `SaveOptions`.

    Raises:
        CheckpointError: An option is malformed.
        RunHeldError: Another saver has the run.
    """

    @moved_options(OLD_EVERY, OLD_OPTIONS)
    @suggesting()
    def __init__(
        self,
        warehouse: Warehouse,
        run: str,
        collect: Collect,
        *,
        every: int | Every | None = None,
        on_best: str | tuple[str, str] | None = None,
        tags: Sequence[str] = (),
        lineage: Mapping[str, Any] | None = None,
        keep: Keep | None = None,
        peers: Peers | None = None,
        batch_counter: BatchCounter | None = None,
        options: SaveOptions | None = None,
    ) -> None:
        self.schedule = SaveSchedule(Every.of(every), on_best)
        how = SaveOptions.of(options)
        if run is None:
            raise CheckpointError('A checkpointer needs the name of its run: run="cnn-1".')
        set_fields(run, 0, tags, {})
        self.warehouse, self.run, self.tags = warehouse, run, list(tags)
        self._collect = collect
        noted = {} if how.architecture is None else {"architecture": how.architecture}
        self._lineage = {**(lineage or {}), **noted, **surroundings()}
        self._wait = how.when_busy == "wait"
        self._peers = peers
        self._agreed = 0  # the signal that all processes serve at this step
        self._batch_counter = batch_counter
        if keep is not None and not isinstance(keep, Keep):
            raise CheckpointError(f"keep= is a policy, Keep(last=3) say; found a {type(keep).__name__}")
        self._saver = Saver(warehouse, how.memory, parent_id(how.parent), keep)
        code = self._lineage["code"]
        self._run = RunSaver(warehouse, run, code, how.config, self.tags) if warehouse.index.is_server else None
        self._release = weakref.finalize(self, self._saver.leave)
        self._release.atexit = False  # the saver waits for its saves at exit by itself
        self._signal_handler: SignalHandler | None = None
        if how.signals:
            at_rest, give_up = _weakly(self, "_save_at_rest"), _weakly(self, "_give_up")
            self._signal_handler = SignalHandler(at_rest, give_up, how.grace, how.numbers)
        self._log: RunLog | None = None
        self._step = 0  # the last that has ended
        self._saved = 0  # the last that was saved, or restored
        self._batches = 0  # delivered when it ended
        self._storable = StorableMetrics()
        if self.schedule.metric is not None:
            self.schedule.metric = self._storable.name(self.schedule.metric) or self.schedule.metric
        self._metrics: Mapping[str, Any] = {}
        self._best_known = self.schedule.metric is None  # whether the sets that exist have been asked for the best
        self._prepared = False
        self._closed = False
        if batch_counter is not None:
            batch_counter.on_ask = _weakly(self, "_serve_signal")
            batch_counter.on_failure = _weakly(self, "_serve_signal_after_failure")
        self._hold_if_allowed()

    @property
    def last_step(self) -> int:
        """The last step that has ended, or was restored."""
        return self._step

    def start_at(self, step: int, parent: ObjectId | None = None) -> None:
        """Continues the count after a restore, and the run in an attempt of its own: what was behind is superseded.

        Args:
            step: The step of the set that was restored.
            parent: The set.
        """
        self._step = self._saved = step
        self._saver.parent = parent
        if self._run is not None and self._run.lease is not None:
            if self._run.is_settled:
                self._end_log()
            self._run.go_on_after(step, parent)
            self._saver.lease = self._run.lease

    def made_from(self, **lineage: Any) -> None:
        """Add to the lineage what was not known before."""
        self._lineage.update(lineage)

    def begin_at(self, step: int) -> None:
        """A loop begins at a step that the framework counts: what it crosses counts from there."""
        self._step = step
        self._saved = min(self._saved, step)

    def end_step(self, step: int, metrics: Mapping[str, Any]) -> bool:
        """To be called when a step has ended: logs, saves when due, and leaves if a signal asks for it.

        Args:
            step: Its number; the first is 1.
            metrics: Numbers and short texts, logged and stored with the set.

        Returns:
            Whether it was saved.

        Raises:
            CheckpointError: An earlier save failed, or the state cannot be saved.
        """
        if self._closed:
            raise CheckpointError(f"The checkpointer of run {self.run!r} is closed. Make a new one to go on saving.")
        self._saver.check()
        self._hold()
        if self._signal_handler is not None:
            self._signal_handler.install()
        metrics = self._storable(metrics)
        self._know_best(metrics)
        due = self.schedule.due(step, self._step, self._saved, metrics, self._saver.busy)
        if self._peers is not None:
            due = self._agree(due)
        self._step, self._metrics = step, metrics
        if self._batch_counter is not None:
            self._batches = self._batch_counter.count
        if metrics and self._writes:
            self._write_row(step, "train", metrics)
        saved = due and self._save(wait=self._wait)
        if not due and not self._prepared:
            state = self._collect(step)
            if self._writes:
                self._saver.prepare(state)
        self._prepared = True
        self._serve_signal()
        self.schedule.resume()
        return saved

    def evaluated(self, metrics: Mapping[str, Any]) -> bool:
        """Metrics of the last step that has ended, known only after it: saves if `on_best` asks for it.

        Returns:
            Whether it was saved.
        """
        metrics = self._storable(metrics)
        self._know_best(metrics)
        if not self.schedule.improves(metrics):
            return False
        self._metrics = {**self._metrics, **metrics}
        return self._save(wait=self._wait)

    def save_now(self) -> None:
        """Saves the last step that has ended, due or not, and however long it has to wait for memory."""
        self._save(wait=True)

    def _save(self, wait: bool) -> bool:
        began = time.perf_counter()
        self._hold()
        state = self._collect(self._step)  # all processes take part, if there are several
        taken = True
        if self._writes:
            fields = set_fields(self.run, self._step, self.tags, self._metrics)
            position = {"position": of_position(state.get("stream"))}
            taken = self._saver.save(state, {**fields, "lineage": {**self._lineage, **position}}, wait=wait)
        if taken:
            self._saved = self._step
            self.schedule.saved(time.perf_counter() - began)
        return taken

    def _hold(self) -> None:
        """Take the lease of the run, if this is the process that stores, or find out whether it still stands.

        Raises:
            RunHeldError: Another has it.
        """
        if self._run is not None and self._writes:
            if self._run.lease is not None and self._run.is_settled and self._run.lease.begun:
                self._run.lease.check()
                return
            self._saver.lease = self._run.begin(self._step)

    def _hold_if_allowed(self) -> None:
        """The same before a step; a client that only reads may restore, too."""
        if self._run is not None and self._writes:
            self._saver.lease = self._run.hold_if_allowed()

    def _end_log(self) -> None:
        if self._log is not None:
            log, self._log = self._log, None
            log.close()

    @property
    def _writes(self) -> bool:
        """Whether this is the process that stores."""
        return self._peers is None or self._peers.rank == 0

    def _agree(self, due: bool) -> bool:
        """Agree with the other processes on whether to save now, as rank 0 decides, and on a signal to serve."""
        assert self._peers is not None
        handler = self._signal_handler
        due, self._agreed = self._peers.agree(due and self._writes, (handler.requested if handler else None) or 0)
        if handler is not None and self._agreed and handler.requested is None:
            handler.requested = self._agreed
        return due

    def _know_best(self, metrics: Mapping[str, Any]) -> None:
        metric, sign = self.schedule.metric, self.schedule.sign
        if self._best_known or metric not in metrics:
            return
        scope = {"_tdb.p": self.warehouse.project, "run": self.run, metric: {"$type": "number"}}
        # NaN is a number, and sorts before all others
        ranked = self.warehouse.index["params"].find(scope, {metric: 1}, sort=[(metric, -sign)])
        values = (float(document[metric]) for document in ranked)
        self.schedule.remember(next((value for value in values if not math.isnan(value)), None))
        self._best_known = True

    def log(self, step: int, kind: str, metrics: Mapping[str, Any]) -> None:
        """Adds a row to the log of the run."""
        self._write_row(step, kind, self._storable(metrics))

    def _write_row(self, step: int, kind: str, metrics: Mapping[str, Any]) -> None:
        if self._log is None:
            lease = None if self._run is None else self._run.lease
            self._log = RunLog(self.warehouse, self.run, self.tags, attempt=None if lease is None else lease.attempt)
        self._log.write(step, kind, **metrics)

    def suspend(self) -> None:
        """Wait until everything is durable, give the run back, and do not handle signals until the next step.

        Raises:
            CheckpointError: A save failed.
        """
        if self._signal_handler is not None:
            self._signal_handler.remove()
        try:
            self._saver.wait()
            self._end_log()
        finally:
            self._end_run()
        self._leave_if_asked()

    def _end_run(self) -> None:
        if self._run is not None:
            self._run.end()
            self._saver.lease = None

    def wait(self) -> None:
        """Waits until all saves so far are durable.

        Raises:
            CheckpointError: One of them failed.
        """
        self._saver.wait()

    @renamed_to("wait")
    def drain(self) -> None:
        """The old name of `wait`."""
        self.wait()

    def close(self) -> None:
        """Waits for saves and log rows under way and lets go of handlers, threads and memory. Twice is fine.

        Raises:
            CheckpointError: A save failed.
        """
        if not self._closed and not self._best_known and self._step and self._writes:
            warnings.warn(
                f"on_best={self.schedule.metric!r}: no metric of this name was reported, so nothing was saved for it",
                stacklevel=3,
            )
        self._closed = True
        if self._signal_handler is not None:
            self._signal_handler.remove()
        if self._batch_counter is not None:
            self._batch_counter.close()
        try:
            self._saver.close()
        finally:
            try:
                if self._log is not None:
                    self._log.close()
            finally:
                self._end_run()
        self._leave_if_asked()

    def stats(self) -> dict[str, Any]:
        """Counts and seconds since the start.

        Returns:
            `saves` taken, `durable` of them, `failed`; `waited`: saves that had to wait for memory, and
            `waited_seconds`; `skipped`: saves left out for want of it; `every`: the steps between saves, the number
            that was chosen under `max_overhead`, None if there is none; `stall_seconds` (median) and
            `stall_seconds_max`: what the loop waited for a save; `persist_seconds` (median); `bytes` saved and
            `bytes_stored`, the part that was not stored yet.
        """
        budget = self.schedule.budget
        return Figures({**self._saver.stats(), "every": self.schedule.every if budget is None else budget.steps})

    def load(self, step: int | None) -> tuple[Mapping[str, Any], dict[str, Any]] | None:
        """The newest training set of the run, or the newest of one step: its document and its parts.

        Returns:
            None if `step` is None and the run has no set.

        Raises:
            RunHeldError: Another saves the run.
            NotFoundError: There is none of that step.
            CorruptBlobError: Its bytes are damaged; the message names the newest set that is intact.
        """
        self._hold_if_allowed()
        document = newest_set(self.warehouse, self.run, step)
        if document is None:
            if step is None:
                return None
            raise NotFoundError(f"Run {self.run!r} has no saved training state at step {step}.")
        try:
            return document, load_parts(self.warehouse, document, None, "auto")
        except (CorruptBlobError, StorageError, CheckpointError) as error:
            raise type(error)(f"{error} {suggest_intact_set(self.warehouse, document)}") from error

    # Signals

    def _serve_signal(self) -> None:
        """At a boundary of the loop, in its thread."""
        if self._signal_handler is None or self._signal_handler.requested is None or not self._rested():
            return
        if self._peers is not None and not self._agreed:  # alone, it would leave the others waiting
            return
        try:
            self._save_rest()
        finally:
            self._signal_handler.leave()

    def _serve_signal_after_failure(self) -> None:
        """No batch came, perhaps because the signal went to all processes and the workers have obeyed at once."""
        self._serve_signal()
        if self._signal_handler is not None and self._signal_handler.requested is not None:
            self._give_up()
        self._leave_if_asked()

    def _leave_if_asked(self) -> None:
        handler = self._signal_handler
        if handler and handler.requested is not None and threading.current_thread() is threading.main_thread():
            handler.leave()

    def _rested(self) -> bool:
        return self._batch_counter is None or self._batch_counter.count == self._batches

    def _save_rest(self) -> None:
        if self._step > self._saved:
            self.save_now()
        self._saver.wait()
        if self._log is not None:
            self._log.flush()

    def _save_at_rest(self) -> bool:
        """From the guard's thread: saves if the loop waits for a batch and has ended the step of the one before."""
        batch_counter = self._batch_counter
        if batch_counter is None or self._peers is not None:  # several processes leave at the end of a step, together
            return False
        with batch_counter.lock:
            if not batch_counter.waiting or not self._rested():
                return False
            try:
                self._save_rest()
            except Exception as error:  # the process is leaving: nobody would raise it
                sys.stderr.write(f"tensordb: the last save failed: {error}\n")
        return True

    def _give_up(self) -> None:
        try:
            self._saver.wait()
        except Exception as error:
            sys.stderr.write(f"tensordb: {error}\n")


def newest_set(warehouse: Warehouse, run: str, step: int | None = None) -> Mapping[str, Any] | None:
    """The document of the training set of a run that was committed last.

    The newest, not the highest step: a run that went back to an earlier step and went on from there continues there.
    """
    filter: dict[str, Any] = {"_tdb.p": warehouse.project, "run": run, "_tdb.parts": "training"}
    if step is not None:
        filter["step"] = step
    found: Mapping[str, Any] | None = warehouse.index["params"].find_one(filter, sort=[("_tdb.s", -1), ("_id", -1)])
    return found


def _weakly(owner: Any, name: str) -> Callable[[], Any]:
    """A method that does not keep its object alive."""
    reference = weakref.ref(owner)

    def call() -> Any:
        found = reference()
        return None if found is None else getattr(found, name)()

    return call
