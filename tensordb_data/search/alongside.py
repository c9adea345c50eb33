"""Entries that are written alongside the commit of their samples, by a thread.

The commit does its work meanwhile, and ends when the entries are there. So no sample that a reader sees lacks its
entry, whatever is killed.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable

from tensordb_data.search.index import Groups, SearchIndex, Texts


class EntriesAlongside:
    """The entries of some samples, which are being written from now on.

    Args:
        index: The search index.
        words: Finds out what the samples are found by; called in the thread.
        few: Whether these are so few samples that their words are looked at here: they mostly have no new ones.
    """

    def __init__(self, index: SearchIndex, words: Callable[[], tuple[Groups, Texts]], *, few: bool) -> None:
        self._index, self._words = index, words
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        if few:
            found = words()
            if index.has(*found):
                return
            self._words = lambda: found
        if not index.is_concurrent:
            index.add_groups(*self._words())
            return
        context = contextvars.copy_context()  # which knows how patient the caller is
        self._thread = threading.Thread(target=context.run, args=(self._write,), name="tensordb-entries", daemon=True)
        self._thread.start()

    def _write(self) -> None:
        try:
            self._index.add_groups(*self._words())
        except BaseException as error:
            self._failure = error

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the entries are written.

        Args:
            seconds: How long at most; None for no limit.

        Returns:
            Whether they are.

        Raises:
            TensorDBError: They could not be written.
        """
        if not self.end(seconds):
            return False
        if self._failure is not None:
            raise self._failure
        return True

    def end(self, seconds: float | None = None) -> bool:
        """Wait until the thread has ended, in whatever way; whether it has."""
        if self._thread is not None:
            self._thread.join(seconds)
            return not self._thread.is_alive()
        return True
