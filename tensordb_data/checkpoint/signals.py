"""Signals while training: save what has been trained, then let the process end as it would have.

A signal may arrive in the middle of an optimizer step, where the parameters belong to no step at all. So the
handler only takes note of it, and it is served at the first of these:

1. the next boundary of the loop: `step()`, or the loop asking for its next batch. The state is saved there, in the
   loop's own thread;
2. the loop is already waiting for a batch: another thread saves, and the loop is kept from going on meanwhile;
3. `grace` seconds have passed without either: what was saved before is brought to disk and that is that.

Then the handlers that were there before are put back and the signal is handed to them. Without one, SIGTERM ends the
process by SystemExit(143), another one by SystemExit(128 + its number) and Ctrl-C by KeyboardInterrupt, so `with`
blocks and exit handlers run. A second signal does not wait for anything.
"""

from __future__ import annotations

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

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopGuard:
    """Holds the handlers while a loop runs.

    Args:
        at_rest: Saves if the loop is waiting for a batch, and says whether it was. Called from another thread.
        give_up: Brings earlier saves to disk. Called from another thread.
        grace: Seconds until `give_up`; a Ctrl-C waits a third of it, because a person does.
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
        """Takes the signals over; does nothing outside the main thread, where Python allows no handlers."""
        if self._previous or threading.current_thread() is not threading.main_thread():
            return
        for number in self._signals:
            previous = signal.getsignal(number)
            if previous is not None and previous is not signal.SIG_IGN:  # ignored, or not Python's: leave it
                self._previous[number] = previous
                signal.signal(number, self._handle)
        if self._previous:
            self._mail = queue.SimpleQueue()
            _guards.add(self)
            threading.Thread(target=self._watch, args=(self._mail,), name="tensordb-stop", daemon=True).start()

    def remove(self) -> None:
        """Puts the previous handlers back, unless somebody has replaced ours since."""
        if threading.current_thread() is not threading.main_thread():
            return
        with self._deciding:
            for number, previous in self._previous.items():
                if signal.getsignal(number) == self._handle:
                    signal.signal(number, previous)
            if self._previous:
                self._mail.put(None)
            self._previous = {}
        _guards.discard(self)

    def leave(self) -> None:
        """Ends the process the way it would have ended without us. Returns only if a previous handler does."""
        with self._deciding:
            number = self.requested
            assert number is not None
            self.remove()
            self.requested = None
            previous = signal.getsignal(number)
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
                signal.pthread_kill(threading.main_thread().ident or 0, number)


_guards: weakref.WeakSet[StopGuard] = weakref.WeakSet()


def _in_child() -> None:
    # A forked worker must die of SIGTERM as it always did, also while it is deep in a library call.
    for guard in list(_guards):
        guard._deciding = threading.RLock()  # a thread that is not here may have held it
        guard.remove()


os.register_at_fork(after_in_child=_in_child)


def _say(text: str) -> None:
    sys.stderr.write(f"tensordb: {text}\n")
