"""Handle signals while training: save the last step, then let the process end as usual.

A signal may arrive in the middle of an optimizer step, when the parameters belong to no step. So the handler only notes
the signal. It is served at the first of these:

1. The loop calls `step()`, or asks for its next batch. The thread of the loop saves.
2. The loop is already waiting for a batch. Another thread saves, and the loop is stopped meanwhile.
3. `grace` seconds have passed without either. Saves that were begun become durable, and nothing else is saved.

Then the previous handlers are installed again, and the signal is given to them. Without one, SIGTERM ends the process
by SystemExit(143), another signal by SystemExit(128 + its number) and Ctrl-C by KeyboardInterrupt, so that `with`
blocks and exit handlers run. A second signal ends the process at once.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from tensordb_data.common.system.fork import at_fork

# A terminal that closes sends SIGHUP. Schedulers of clusters send SIGUSR1 some time before they end a job.
_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
SIGNALS: tuple[int, ...] = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class SignalHandler:
    """Handles signals while a loop runs.

    Args:
        at_rest: Saves if the loop is waiting for a batch; returns whether it was. Called from another thread.
        give_up: Makes earlier saves durable. Called from another thread.
        grace: Seconds until `give_up` is called. For Ctrl-C it is a third, because a person waits.
        signals: The numbers of the signals.
    """

    def __init__(
        self,
        at_rest: Callable[[], bool],
        give_up: Callable[[], None],
        grace: float = 10.0,
        signals: Sequence[int] = SIGNALS,
    ) -> None:
        self.requested: int | None = None
        self._at_rest = at_rest
        self._give_up = give_up
        self._grace = grace
        self._signals = signals
        self._previous: dict[int, Any] = {}
        # put() of a SimpleQueue is reentrant: the one way to wake a thread that is safe within a handler
        self._mail: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._pid = os.getpid()
        # Held while it is decided who ends the process. Reentrant: a handler may interrupt its own thread here.
        self._deciding = threading.RLock()

    def install(self) -> None:
        """Install the handlers. Outside the main thread, where Python allows none, this does nothing."""
        if self._previous or threading.current_thread() is not threading.main_thread():
            return
        for number in self._signals:
            previous = signal.getsignal(number)
            if previous is not None and previous is not signal.SIG_IGN:  # ignored, or not Python's: leave it
                self._previous[number] = previous
                signal.signal(number, self._handle)
        if self._previous:
            self._mail = queue.SimpleQueue()
            _handlers.add(self)
            threading.Thread(target=self._watch, args=(self._mail,), name="tensordb-stop", daemon=True).start()

    def remove(self) -> None:
        """Install the previous handlers again, unless ours were replaced since."""
        if threading.current_thread() is not threading.main_thread():
            return
        with self._deciding:
            for number, previous in self._previous.items():
                if signal.getsignal(number) == self._handle:
                    signal.signal(number, previous)
            if self._previous:
                self._mail.put(None)
            self._previous = {}
        _handlers.discard(self)

    def leave(self) -> None:
        """End the process as it would have ended without us. This returns only if a previous handler returns."""
        with self._deciding:
            number = self.requested
            assert number is not None
            self.remove()
            self.requested = None
            previous = signal.getsignal(number)
        _hush_deaths()
        if callable(previous):
            previous(number, None)
        else:
            raise SystemExit(128 + number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a child that forked off: it has nothing to save
            signal.signal(number, self._previous.get(number, signal.SIG_DFL))
            signal.raise_signal(number)
            return
        if self.requested is not None:  # the second one, or ours after the grace time
            self.leave()
            return
        self.requested = number
        self._mail.put(number)

    def _watch(self, mail: queue.SimpleQueue[int | None]) -> None:
        number = mail.get()
        if number is None:
            return
        name = signal.Signals(number).name
        grace = self._grace / 3 if number == signal.SIGINT else self._grace
        _say(f"{name}: saving at the end of this step, then leaving; once more to leave at once")
        end = time.monotonic() + grace
        while True:
            if self._at_rest():
                break
            try:
                mail.get(timeout=min(0.05, max(0.0, end - time.monotonic())))
                return  # served by the loop
            except queue.Empty:
                if time.monotonic() >= end:
                    _say(f"{name}: no step ended within {grace:.0f} s; leaving with what was saved before")
                    self._give_up()
                    break
        with self._deciding:  # else it might arrive when the handlers before ours are back, and end us otherwise
            if self.requested is not None and self._previous:
                # to the main thread by number, so that a blocking call there is interrupted
                if hasattr(signal, "pthread_kill"):
                    signal.pthread_kill(threading.main_thread().ident or 0, number)
                else:  # Windows, which has one handler for all threads
                    signal.raise_signal(number)


_handlers: weakref.WeakSet[SignalHandler] = weakref.WeakSet()


def _in_child() -> None:
    # A forked worker must die of SIGTERM as it always did, also while it is deep in a library call.
    for handler in list(_handlers):
        handler._deciding = threading.RLock()  # a thread that is not here may have held it
        handler.remove()


at_fork(after_in_child=_in_child)


def _hush_deaths() -> None:
    """Loader workers die of the same signal. PyTorch's handler of that would raise in place of what ends us."""
    number = getattr(signal, "SIGCHLD", None)
    handler = None if number is None else signal.getsignal(number)
    if number is None or not callable(handler) or threading.current_thread() is not threading.main_thread():
        return

    def quiet(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(Exception):
            handler(number, frame)

    signal.signal(number, quiet)


def _say(text: str) -> None:
    sys.stderr.write(f"tensordb: {text}\n")
