"""Trainer: a training loop that does not end. What learns is given to it, in any framework."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tensordb_data.checkpoint import rng
from tensordb_data.checkpoint.checkpointer import Checkpointer
from tensordb_data.checkpoint.options import Every, SaveOptions
from tensordb_data.common.options import suggesting
from tensordb_data.continuous.loop import Stoppable, log
from tensordb_data.errors import CheckpointError, StateError, UnsupportedError
from tensordb_data.mongo.errors import first_line, is_transient
from tensordb_data.params.lineage import of_data
from tensordb_data.params.load import describe
from tensordb_data.params.retention import Keep

if TYPE_CHECKING:
    from tensordb_data.api.database import TensorDB

T = TypeVar("T")

_WAIT = (0.05, 10.0)  # seconds between attempts at a warehouse that is away: first, most
_OURS = frozenset(("rng", "stream", "training"))


class Learner(Protocol):
    """What a trainer trains: any object with these methods. `tensordb_data.torch.Learner` is one for PyTorch."""

    def step(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """One update. Returns metrics, numbers and short texts, which are logged and stored with the checkpoint."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """The state as a dict of parts: `model` has the parameters; other parts, such as `optimizer`, are optional."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        """Continues from a state. If the state does not fit, it raises StateError and changes nothing."""
        ...


class Trainer(Stoppable):
    """Pulls batches from a stream, trains, and saves every N steps, until it is asked to stop.

    A checkpoint has the state of the learner, the random generators and the position of the stream, at one instant. A
    trainer that was killed goes on after the last checkpoint of its run. With a stream that follows, it trains again on
    the samples since that checkpoint, and once on all others. While the database is away, the trainer waits and keeps
    the learner as it is, so no step is lost. If a save fails because the database or the store was away, the next save
    that is due makes up for it.

    Args:
        db: The warehouse.
        run: Name of the run. If the run exists, it is continued.
        learner: The learner to train.
        stream: The batches, for example `selection.stream(batch_size, follow=True)`. Only the trainer may use it.
        every: How often to save: `every=200` steps, or an `Every`.
        on_best: Save when this metric of `learner.step` is better than in any checkpoint of the run: `"acc"`, or
            `("loss", "min")` if less is better.
        tags: Tags of every checkpoint and log row.
        keep: Which training states of the run stay, for example `Keep(last=3)`. By default all of them.
        options: How to save; see `SaveOptions`. Its signals ask the trainer to stop. It has no `grace`: the step that
            runs is always ended.

    Raises:
        CheckpointError: An option is malformed.
        UnsupportedError: `options` has another `grace` than by default.
    """

    @suggesting()
    def __init__(
        self,
        db: TensorDB,
        run: str,
        learner: Learner,
        stream: Any,
        *,
        every: int | Every,
        on_best: str | tuple[str, str] | None = None,
        tags: Sequence[str] = (),
        keep: Keep | None = None,
        options: SaveOptions | None = None,
    ) -> None:
        super().__init__()
        how = SaveOptions.of(options)
        if how.grace != SaveOptions.grace:
            raise UnsupportedError("SaveOptions(grace=) is not for a Trainer: it ends the step that runs, and saves")
        self._numbers = how.numbers
        self.run_name, self.last_step = run, 0
        self._learner, self._stream = learner, stream
        self._make_saver = partial(
            Checkpointer, db.warehouse, run, every=every, on_best=on_best, tags=tags, keep=keep,
            lineage={"data": of_data(stream)}, options=replace(how, signals=False),
        )  # fmt: skip
        self._saved, self._delay = 0, _WAIT[0]
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._saver(hold=False).close()  # raises if something is wrong with the arguments

    def run(self, steps: int | None = None) -> int:
        """Trains until `stop()`, SIGTERM or Ctrl-C, or for so many steps. Then it saves the last step.

        Returns:
            The last step.

        Raises:
            StateError: The last checkpoint of the run does not fit the learner or the stream.
            CorruptBlobError: The last checkpoint of the run is damaged. The message says which one is intact.
            CheckpointError: A save failed for another reason than that the warehouse was away.
        """
        with self._signals(self._numbers), self._closing_stream(), contextlib.closing(self._saver()) as saver:
            self._retry_while_unavailable(lambda: self._restore(saver))
            until = None if steps is None else self.last_step + steps
            for batch in self._batches():
                metrics = self._learner.step(batch)
                self.last_step += 1
                self._ended(saver, metrics)
                if self._stopping or self.last_step == until:
                    break
            self._save_last(saver)
        return self.last_step

    def _saver(self, hold: bool = True) -> Checkpointer:
        return self._make_saver(collect=self._state, hold=hold)

    def _state(self, step: int) -> dict[str, Any]:
        return {
            **self._learner.state_dict(),
            "rng": rng.capture(),
            "stream": self._stream.state_dict(),
            "training": {"step": step, "framework": "continuous"},
        }

    def _restore(self, saver: Checkpointer) -> None:
        found = saver.load(None)
        if found is None:
            return
        document, parts = found
        if parts["training"].get("framework") != "continuous":
            raise StateError(f"{describe(document)} was not saved by a Trainer. Use another run name.")
        self._stream.load_state_dict(parts["stream"])
        self._learner.load_state_dict({name: part for name, part in parts.items() if name not in _OURS})
        rng.apply(parts["rng"])
        self.last_step = self._saved = int(parts["training"]["step"])
        saver.start_at(self.last_step, document["_id"])
        log.info("going on after %s", describe(document))

    def _batches(self) -> Iterator[Mapping[str, Any]]:
        """The batches of the stream. When the database was away, the stream is iterated again from its position."""
        batches: Any = None
        while not self._stopping:
            try:
                batches = iter(self._stream) if batches is None else batches
                batch = next(batches)
            except StopIteration:
                return
            except Exception as error:
                if self.stopping and isinstance(error, StateError):
                    return  # the stream was closed under the loop
                if not is_transient(error):
                    raise
                batches = None
                self._away(error, self._delay)
                self._delay = min(_WAIT[1], self._delay * 2)
                continue
            self._delay = _WAIT[0]
            yield batch

    def _ended(self, saver: Checkpointer, metrics: Mapping[str, Any]) -> None:
        try:
            due = saver.end_step(self.last_step, metrics)
        except CheckpointError as error:
            if not _away(error):
                raise
            log.warning("a save was lost, the next that is due makes up for it: %s", error)
            due = saver.end_step(self.last_step, metrics)
        if due:
            self._saved = self.last_step

    def _save_last(self, saver: Checkpointer) -> None:
        """Save the last step, and wait for all saves, for as long as the warehouse is away."""

        def save() -> None:
            if self.last_step > self._saved:
                saver.save_now()
            self._saved = -1  # unless it is durable
            saver.wait()
            self._saved = self.last_step

        self._retry_while_unavailable(save, stoppable=False)

    def _retry_while_unavailable(self, call: Callable[[], T], stoppable: bool = True) -> T | None:
        """Make a call, and repeat it while the warehouse is unavailable; returns None if the trainer was stopped
        before.
        """
        delay = _WAIT[0]
        while not (stoppable and self._stopping):
            try:
                return call()
            except Exception as error:
                if not (is_transient(error) or _away(error)):
                    raise
                self._away(error, delay)
                delay = min(_WAIT[1], delay * 2)
        return None

    def _away(self, error: Exception, delay: float) -> None:
        log.warning("the warehouse is away, again in %.2f s: %s", delay, first_line(error))
        if self._stopping:
            time.sleep(delay)
        else:
            self._sleep(delay)

    def stop(self) -> None:
        super().stop()
        self._wakes.put(None)

    @contextlib.contextmanager
    def _closing_stream(self) -> Iterator[None]:
        """Close the stream when the trainer is asked to stop, to end a wait for data.

        A signal handler must not do that.
        """

        def close() -> None:
            self._wakes.get()
            with contextlib.suppress(ValueError):  # it is just running: then it sees by itself that it was closed
                self._stream.close()

        self._wakes = queue.SimpleQueue()
        thread = threading.Thread(target=close, name="tensordb-trainer-stop", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._wakes.put(None)
            thread.join()


def _away(error: BaseException) -> bool:
    """Whether a save failed because the database or the store was unavailable, or the disk was full."""
    cause = error.__cause__ if isinstance(error, CheckpointError) else None
    return isinstance(cause, Exception) and (is_transient(cause) or isinstance(cause, OSError))
