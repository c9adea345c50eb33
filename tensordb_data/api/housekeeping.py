"""What a `TensorDB` does to keep its blobs and its index whole."""

from __future__ import annotations

import abc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tensordb_data.mongo.address import parse

if TYPE_CHECKING:
    from tensordb_data.housekeeping.backup.create import BackedUp
    from tensordb_data.housekeeping.backup.restore import Restored
    from tensordb_data.housekeeping.fsck.report import Checked
    from tensordb_data.housekeeping.gc import Collected
    from tensordb_data.housekeeping.rebuild_report import Rebuilt
    from tensordb_data.housekeeping.repair import Repair
    from tensordb_data.warehouse.context import Warehouse


class Housekeeping(abc.ABC):
    """The methods of a `TensorDB` that check, clean, save and bring back the whole warehouse."""

    @property
    @abc.abstractmethod
    def warehouse(self) -> Warehouse:
        """The context: index and blobs."""

    def gc(
        self,
        *,
        grace: float = 3600.0,
        dry_run: bool = False,
        progress: Callable[[str, int], None] | None = None,
    ) -> Collected:
        """Remove blobs that nothing refers to, of all projects. Safe at any time, beside writers, readers and saves.

        A blob that is unused is marked first. A later call removes it, if it is still unused and `grace` has passed.

        Args:
            grace: Seconds, on the server's clock. Younger blobs are not marked, and a blob is removed so many seconds
                after it was marked. With 0, blobs that a running `load()` of a deleted checkpoint reads may be removed.
            dry_run: Change nothing; only report what is unused.
            progress: Called with the kind of object that is checked, and how many were checked so far.

        Raises:
            StorageError: A blob store failed; the next call goes on.
            UnsupportedError: This is mongomock.
        """
        from tensordb_data.housekeeping.gc import collect

        return collect(self.warehouse, grace, dry_run, progress)

    def repairs(self) -> list[Repair]:
        """What can be mended without guessing, in all projects. Nothing is written: that is what `mend()` of each does.

        Raises:
            UnsupportedError: This is mongomock.
        """
        from tensordb_data.housekeeping.repair import repairs

        return repairs(self.warehouse)

    def fsck(self, *, quick: bool = False, progress: Callable[[str, int, int], None] | None = None) -> Checked:
        """Check that every reference leads to bytes, and that all bytes match their checksums, in all projects.

        It reads all bytes, changes nothing, and may run at any time.

        Args:
            quick: Read no blobs whose object has the size that it should have, and no files that samples point into if
                their size and time are as they were. Bytes that have changed in place are not seen then.
            progress: Called with the kind of object that is checked, how many are done, and how many there are.

        Returns:
            What was checked, and the findings. There are none if everything is intact.
        """
        from tensordb_data.housekeeping.fsck.check import check

        return check(self.warehouse, progress, quick=quick)

    def rebuild(self, *, progress: Callable[[str, int, int], None] | None = None) -> Rebuilt:
        """Write the samples and checkpoints of a project again, from its blobs, after its index was lost.

        Open a new database with the `blobs=` of the old one, and call this. It can be stopped and called again.

        Args:
            progress: Called with the kind of object that is read, how many are done, and how many there are.

        Returns:
            What was restored, which objects could not be used, and what the blob store does not tell.

        Raises:
            UnsupportedError: The project has samples or checkpoints: its index is not lost.
        """
        from tensordb_data.housekeeping.rebuild import rebuild

        return rebuild(self.warehouse, progress)

    def backup(self, to: str | Path, *, progress: Callable[[str, int, int], None] | None = None) -> BackedUp:
        """Write the index and the blobs of all projects into a new folder. Safe beside writers, readers, saves and gc.

        The backup is of one instant. While it is made, gc removes nothing. Blobs in object stores, and in places that
        this client was not told of, stay where they are: the report names them.

        Args:
            to: A folder that does not exist, or is empty.
            progress: Called with what is done, how many of it are done, and how many there are; 0 if that is not known.

        Raises:
            StorageError: The folder is not empty or cannot be written, or the server keeps no snapshot for so long.
            ReadOnlyError: This TensorDB was opened with `read_only=True`: a backup holds off gc, by a write.
            UnsupportedError: This is mongomock.
        """
        from tensordb_data.housekeeping.backup.create import create

        return create(self.warehouse, to, progress)

    @staticmethod
    def restore(
        backup: str | Path,
        address: str | Path,
        *,
        blobs: str | Path | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Restored:
        """Bring a backup back, into a new folder or an empty database: all of it, or nothing that can be opened.

        Each file is compared with its size and checksum. If the restore is killed, the target is refused by whoever
        opens it, and the same call begins anew.

        Args:
            backup: The folder that `backup` has written.
            address: A folder that does not exist or is empty, or the address of a database without collections.
            blobs: Where the blobs go: an empty place. By default to `blobs` in the folder, or to GridFS.
            progress: Called with what is done, how many of it are done, and how many there are.

        Raises:
            StorageError: It is no complete backup, a file of it is damaged (`CorruptBlobError`), or the target is not
                empty.
            ConnectError: The database is not empty, or cannot be reached.
        """
        from tensordb_data.housekeeping.backup.restore import restore

        return restore(backup, parse(address), blobs, progress)
