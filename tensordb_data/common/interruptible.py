"""A condition that an interrupt at any instruction cannot leave locked for good, and that no interrupt is lost in."""

from __future__ import annotations

import threading
from types import TracebackType

_LOOK = 1.0


class InterruptibleCondition(threading.Condition):
    """A re-entrant condition whose lock is given back by the thread that an interrupt has left with it.

    A `KeyboardInterrupt` may come between the instruction that takes a lock and the block that gives it back. The
    thread then owns the lock for ever, and the others wait for it. An object that has such a condition calls `recover`
    at the beginning of each method that nobody calls while he holds the lock.

    A signal that arrives after Python has last looked for one, and before the system call that waits, ends no wait. So
    `wait` returns after a second at the latest, to look again. Its callers ask for what they wait for in a loop.
    """

    def __init__(self) -> None:
        super().__init__(threading.RLock())

    def recover(self) -> None:
        """Give the lock back if this thread still owns it."""
        while self._is_owned():
            self.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until notified; return False after `timeout` seconds, and after a second in any case."""
        return super().wait(_LOOK if timeout is None else min(timeout, _LOOK))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_owned():  # not if an interrupt has come between giving it back and taking it again, in `wait`
            self.release()

    def _is_owned(self) -> bool:
        owned: bool = self._lock._is_owned()  # type: ignore[attr-defined]
        return owned
