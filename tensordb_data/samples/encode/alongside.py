"""What is done alongside a transaction by a thread, and must be done before the transaction ends."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from tensordb_data.search.index import Groups, Texts, search_index

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse


class Alongside:
    """A call that a thread makes, once.

    Args:
        call: The call; None for nothing to do.
    """

    def __init__(self, call: Callable[[], object] | None = None) -> None:
        self.failure: BaseException | None = None
        """Why it failed, once it has ended; None if it did not."""
        self._call = call
        self._thread: threading.Thread | None = None

    def start(self) -> Alongside:
        """Have the call made from now on, if it was not before.

        A call that computes hinders one that computes too: it begins best when the caller is about to wait.

        Returns:
            This.
        """
        if self._call is not None and self._thread is None:
            context = contextvars.copy_context()  # which knows how patient the caller is
            self._thread = threading.Thread(
                target=context.run, args=(self._run, self._call), name="tensordb-alongside", daemon=True
            )
            self._thread.start()
        return self

    def _run(self, call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            self.failure = error

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it is done. It was started.

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
        """Wait until it has ended, in whatever way; whether it has, or was not started."""
        if self._thread is None:
            return True
        self._thread.join(seconds)
        return not self._thread.is_alive()


def entries_to_write(
    warehouse: Warehouse, words: Callable[[], tuple[Groups, Texts]], are_many: bool
) -> Callable[[], None] | None:
    """What writes the entries of samples in the search index; None if they are there, as those of few mostly are.

    Args:
        warehouse: The warehouse.
        words: Finds the groups and texts of the samples.
        are_many: Whether these are so many samples that this, too, is better done alongside.
    """
    index = search_index(warehouse, "data")
    if are_many:
        return lambda: index.add_groups(*words())
    found = words()
    if not warehouse.index.is_server:  # there is no transaction that could wait
        index.add_groups(*found)
        return None
    return None if index.has(*found) else lambda: index.add_groups(*found)
