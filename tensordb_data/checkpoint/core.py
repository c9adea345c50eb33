"""Checkpointer: parameters every N steps, in any framework. The hooks in `integrations/` say what a state is."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tensordb_data.checkpoint.deliveries import Deliveries
from tensordb_data.checkpoint.load import describe, load_parts, verify
from tensordb_data.checkpoint.stop import StopGuard
from tensordb_data.checkpoint.worker import Saver
from tensordb_data.errors import CheckpointError, CorruptBlobError, NotFoundError, StorageError
from tensordb_data.records.logs import RESERVED
from tensordb_data.records.params import set_fields
from tensordb_data.records.scalars import check_names

if TYPE_CHECKING:
    from tensordb_data.records.logs import RunLog
    from tensordb_data.warehouse import TensorDB

Collect = Callable[[int], Mapping[str, Any]]


class Checkpointer:
    """Saves a training state every N steps in the background, logs its metrics, and finds it again.

    Args:
        db: The warehouse.
        run: Name of the run; sets and log rows carry it.
        collect: Gives the state after the step it is called with: a dict of parts, of tensors and plain values.
        every: Save when a multiple of this number of steps is reached or crossed.
        tags: Tags of every set.
        buffers: Copies of the state in host memory: with 2 one is stored while the next is taken; 1 halves the memory.
        deliveries: Counts the batches of the loop; lets a signal be served while the loop waits for data.
        signals: Whether SIGTERM and Ctrl-C save first (see `checkpoint.stop`).
        grace: Seconds that a step may still take after a SIGTERM.
    """

    def __init__(
        self,
        db: TensorDB,
        run: str,
        collect: Collect,
        *,
        every: int,
        tags: Sequence[str] = (),
        buffers: int = 2,
        deliveries: Deliveries | None = None,
        signals: bool = True,
        grace: float = 10.0,
    ) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise CheckpointError(f"`every` must be a number of steps, at least 1. Found: {every!r}")
        set_fields(run, 0, tags, {})
        self.db, self.run, self.every, self.tags = db, run, every, list(tags)
        self._collect = collect
        self._deliveries = deliveries
        self._saver = Saver(db, buffers)
        self._release = weakref.finalize(self, self._saver.retire)
        self._release.atexit = False  # the saver drains at exit by itself
        self._guard = StopGuard(_weakly(self, "_save_at_rest"), _weakly(self, "_give_up"), grace) if signals else None
        self._log: RunLog | None = None
        self._step = 0  # the last that has ended
        self._saved = 0  # the last that was saved, or restored
        self._batches = 0  # delivered when it ended
        self._metrics: Mapping[str, Any] = {}
        self._prepared = False
        self._closed = False
        if deliveries is not None:
            deliveries.on_ask = _weakly(self, "_serve_signal")
            deliveries.on_failure = _weakly(self, "_serve_signal_after_failure")

    @property
    def last_step(self) -> int:
        """The last step that has ended, or was restored."""
        return self._step

    def start_at(self, step: int) -> None:
        """Continues the count after a restore."""
        self._step = self._saved = step

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
        if self._guard is not None:
            self._guard.install()
        due = step // self.every > self._step // self.every
        self._step, self._metrics = step, metrics
        if self._deliveries is not None:
            self._batches = self._deliveries.count
        if metrics:
            self.log(step, "train", metrics)
        if due:
            self.save_now()
        elif not self._prepared:
            self._saver.prepare(self._collect(step))
        self._prepared = True
        self._serve_signal()
        return due

    def save_now(self) -> None:
        """Saves the last step that has ended, due or not."""
        self._saver.save(self._collect(self._step), set_fields(self.run, self._step, self.tags, self._metrics))
        self._saved = self._step

    def log(self, step: int, kind: str, metrics: Mapping[str, Any]) -> None:
        """Adds a row to the log of the run."""
        if self._log is None:
            self._log = self.db.logs.run(self.run, tags=self.tags)
        if "kind" in metrics:
            check_names(metrics, RESERVED)
        self._log.write(step, kind, **metrics)

    def settle(self) -> None:
        """Waits until everything is durable and leaves the signals alone until the next step.

        Raises:
            CheckpointError: A save failed.
        """
        if self._guard is not None:
            self._guard.remove()
        self._saver.drain()
        if self._log is not None:
            self._log.flush()
        self._leave_if_asked()

    def drain(self) -> None:
        """Waits until all saves so far are durable.

        Raises:
            CheckpointError: One of them failed.
        """
        self._saver.drain()

    def close(self) -> None:
        """Waits for saves and log rows under way and lets go of handlers, threads and memory. Twice is fine.

        Raises:
            CheckpointError: A save failed.
        """
        self._closed = True
        if self._guard is not None:
            self._guard.remove()
        if self._deliveries is not None:
            self._deliveries.close()
        try:
            self._saver.close()
        finally:
            if self._log is not None:
                self._log.close()
        self._leave_if_asked()

    def stats(self) -> dict[str, Any]:
        """Counts and seconds since the start.

        Returns:
            `saves` taken, `durable` of them, `failed`; `waited`: saves that had to wait for a free buffer, and
            `waited_seconds`; `stall_seconds` (median) and `stall_seconds_max`: what the loop waited for a save;
            `persist_seconds` (median); `bytes` saved and `bytes_stored`, the part that was not stored yet.
        """
        return self._saver.stats()

    def load(self, step: int | None) -> tuple[Mapping[str, Any], dict[str, Any]] | None:
        """The newest training set of the run, or the newest of one step: its document and its parts.

        Returns:
            None if `step` is None and the run has no set.

        Raises:
            NotFoundError: There is none of that step.
            CorruptBlobError: Its bytes are damaged; the message names the newest set that is intact.
        """
        document = newest_set(self.db, self.run, step)
        if document is None:
            if step is None:
                return None
            raise NotFoundError(f"Run {self.run!r} has no saved training state at step {step}.")
        try:
            return document, load_parts(self.db, document, None, "auto")
        except (CorruptBlobError, StorageError, CheckpointError) as error:
            raise type(error)(f"{error} {_offer(self.db, document)}") from error

    # Signals

    def _serve_signal(self) -> None:
        """At a boundary of the loop, in its thread."""
        if self._guard is None or self._guard.requested is None or not self._rested():
            return
        try:
            self._save_rest()
        finally:
            self._guard.leave()

    def _serve_signal_after_failure(self) -> None:
        """No batch came, perhaps because the signal went to all processes and the workers have obeyed at once."""
        self._serve_signal()
        if self._guard is not None and self._guard.requested is not None:
            self._give_up()
        self._leave_if_asked()

    def _leave_if_asked(self) -> None:
        guard = self._guard
        if guard and guard.requested is not None and threading.current_thread() is threading.main_thread():
            guard.leave()

    def _rested(self) -> bool:
        return self._deliveries is None or self._deliveries.count == self._batches

    def _save_rest(self) -> None:
        if self._step > self._saved:
            self.save_now()
        self._saver.drain()
        if self._log is not None:
            self._log.flush()

    def _save_at_rest(self) -> bool:
        """From the guard's thread: saves if the loop waits for a batch and has ended the step of the one before."""
        deliveries = self._deliveries
        if deliveries is None:
            return False
        with deliveries.lock:
            if not deliveries.waiting or not self._rested():
                return False
            try:
                self._save_rest()
            except Exception as error:  # the process is leaving: nobody would raise it
                sys.stderr.write(f"tensordb: the last save failed: {error}\n")
        return True

    def _give_up(self) -> None:
        try:
            self._saver.drain()
        except Exception as error:
            sys.stderr.write(f"tensordb: {error}\n")


def newest_set(db: TensorDB, run: str, step: int | None = None) -> Mapping[str, Any] | None:
    """The document of the training set of a run that was committed last.

    The newest, not the highest step: a run that went back to an earlier step and went on from there continues there.
    """
    filter: dict[str, Any] = {"_tdb.p": db.project, "run": run, "_tdb.parts": "training"}
    if step is not None:
        filter["step"] = step
    found: Mapping[str, Any] | None = db._mongo()["params"].find_one(filter, sort=[("_tdb.s", -1), ("_id", -1)])
    return found


def _offer(db: TensorDB, damaged: Mapping[str, Any]) -> str:
    older = db._mongo()["params"].find(
        {"_tdb.p": db.project, "run": damaged["run"], "_tdb.parts": "training", "_id": {"$ne": damaged["_id"]}},
        sort=[("_tdb.s", -1), ("_id", -1)],
    )
    for document in older:
        if verify(db, document):
            return (
                f"The newest intact one is {describe(document)}: restore(step={document['step']}) continues from there."
            )
    return "No other set of this run is intact."


def _weakly(owner: Any, name: str) -> Callable[[], Any]:
    """A method that does not keep its object alive."""
    reference = weakref.ref(owner)

    def call() -> Any:
        found = reference()
        return None if found is None else getattr(found, name)()

    return call
