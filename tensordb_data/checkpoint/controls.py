"""SaveControls: the methods by which a program controls a checkpointer, the same for every framework."""

from __future__ import annotations

from typing import Any

from tensordb_data.checkpoint.checkpointer import Checkpointer
from tensordb_data.common.deprecation import renamed_to


class SaveControls:
    """The base of the checkpointers of a framework. They set `_core`."""

    _core: Checkpointer

    def save(self) -> None:
        """Save the last step that has ended, whether a save is due or not."""
        self._core.save_now()

    def wait(self) -> None:
        """Wait until all saves so far are durable.

        Raises:
            CheckpointError: One of them failed.
        """
        self._core.wait()

    @renamed_to("wait")
    def drain(self) -> None:
        """The old name of `wait`."""
        self.wait()

    def stats(self) -> dict[str, Any]:
        """Saves, waits, seconds and bytes; see `Checkpointer.stats`."""
        return self._core.stats()

    def close(self) -> None:
        """Wait until every save is durable, and end the checkpointer. A second call does nothing.

        A process that ends without it still stores the saves that were taken.

        Raises:
            CheckpointError: A save failed.
        """
        self._core.close()
