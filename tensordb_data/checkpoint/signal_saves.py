"""What a checkpointer does at a signal: it saves the last step that has ended, and lets the process leave."""

from __future__ import annotations

import abc
import sys
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensordb_data.checkpoint.background import Saver
    from tensordb_data.checkpoint.batch_counter import BatchCounter
    from tensordb_data.checkpoint.signals import SignalHandler
    from tensordb_data.logs.writer import RunLog


class SavesOnSignals(abc.ABC):
    """The part of `Checkpointer` that serves signals. What it needs of the rest is declared here."""

    _signal_handler: SignalHandler | None
    _batch_counter: BatchCounter | None
    _saver: Saver
    _log: RunLog | None
    _peers: Any
    _agreed: int
    """The signal that all processes serve at this step."""
    _step: int
    _saved: int
    _batches: int

    @abc.abstractmethod
    def save_now(self) -> None:
        """Save the last step that has ended."""

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


def weakly(owner: Any, name: str) -> Callable[[], Any]:
    """A method that does not keep its object alive."""
    reference = weakref.ref(owner)

    def call() -> Any:
        found = reference()
        return None if found is None else getattr(found, name)()

    return call
