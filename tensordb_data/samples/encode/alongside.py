"""What is done alongside a transaction by a thread, and must be done before the transaction ends."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable


class Alongside:
    """A call that is under way from now on, in a thread.

    Args:
        call: The call; None for nothing to do.
        threaded: Whether it may run in a thread. If not, it is done when this is made.
    """

    def __init__(self, call: Callable[[], object] | None = None, *, threaded: bool = True) -> None:
        self.failure: BaseException | None = None
        """Why it failed, once it has ended; None if it did not."""
        self._thread: threading.Thread | None = None
        if call is None:
            return
        if not threaded:
            call()
            return
        context = contextvars.copy_context()  # which knows how patient the caller is
        self._thread = threading.Thread(
            target=context.run, args=(self._run, call), name="tensordb-alongside", daemon=True
        )
        self._thread.start()

    def _run(self, call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            self.failure = error

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it is done.

        Args:
            seconds: How long at most; None for no limit.

        Returns:
            Whether it is done.

        Raises:
            TensorDBError: It failed; what the call has raised.
        """
        if not self.end(seconds):
            return False
        if self.failure is not None:
            raise self.failure
        return True

    def end(self, seconds: float | None = None) -> bool:
        """Wait until it has ended, in whatever way; whether it has."""
        if self._thread is None:
            return True
        self._thread.join(seconds)
        return not self._thread.is_alive()
