"""Whether a path still leads to the folder that it led to when it was opened."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tensordb_data.errors import StorageError


@dataclass(frozen=True)
class FolderIdentity:
    """A folder by its path, and by its device and inode."""

    path: Path
    device: int
    inode: int

    @classmethod
    def nearest(cls, folder: Path) -> FolderIdentity:
        """The folder; or if it does not exist, the nearest one above it that does."""
        for path in (folder, *folder.parents):
            try:
                found = os.stat(path)
            except OSError:
                continue
            return cls(path, found.st_dev, found.st_ino)
        raise StorageError(f"there is no folder above {folder}")

    def check(self) -> None:
        """Check that the path leads to the same folder.

        Raises:
            StorageError: It was moved, deleted or replaced.
        """
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            raise self._gone("is not there any more") from None
        except OSError as error:
            raise StorageError(f"cannot look at {self.path}: {error.strerror or error}") from None
        if (found.st_dev, found.st_ino) != (self.device, self.inode):
            raise self._gone("is another folder now")

    def _gone(self, what: str) -> StorageError:
        return StorageError(
            f"{self.path} {what}: it was moved, deleted or replaced while it was open, so nothing more is written. "
            "What was committed before is in the folder as it was: open that where it is now, and write the rest again"
        )
