"""Which blob roots a client may use: those that its own user has named, whatever the database says.

A database names the roots in which its blobs are. Whoever can write to it could name any folder or bucket there. So a
client uses a root of the database only if it is one of these:

- a folder within that of its embedded warehouse, GridFS in its own database, or memory of its own process;
- the place that was given as `blobs=`, or a root of the user's config file;
- for reading only: the places that were given as `roots=`, or in `$TENSORDB_ROOTS`.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from tensordb_data.blobs.stores.base import without_secrets
from tensordb_data.common.system.file_urls import file_path
from tensordb_data.errors import StorageError
from tensordb_data.warehouse.catalog import resolve_blobs
from tensordb_data.warehouse.user_config import roots_of_user

VARIABLE = "TENSORDB_ROOTS"


@dataclass(frozen=True)
class OpenedRoots:
    """The roots that a user has opened, as URLs. They go with a warehouse into other processes."""

    owned: tuple[str, ...] = ()
    """Blobs are read, written and removed there."""
    read: tuple[str, ...] = ()
    """Blobs are read there."""

    @classmethod
    def of_user(cls, blobs: str | None, roots: Sequence[str | Path] | None, folder: Path | None) -> OpenedRoots:
        """What the arguments, the environment and the config file of this user name.

        Args:
            blobs: `blobs=`, as it is recorded.
            roots: `roots=`.
            folder: The folder of the embedded warehouse.

        Raises:
            StorageError: One of them is no place for blobs, or is a folder that does not exist.
        """
        if isinstance(roots, (str, Path)) or not isinstance(roots, (Sequence, type(None))):
            raise StorageError(f"roots= is a list of folders and URLs, such as roots=[{str(roots)!r}]; found {roots!r}")
        named = [*(roots or ()), *filter(None, map(str.strip, os.environ.get(VARIABLE, "").split(",")))]
        owned = [*([] if blobs is None else [blobs]), *roots_of_user().values()]
        opened = cls(tuple(owned), tuple(resolve_blobs(url, folder, "roots=") for url in named))
        opened.check_folders()
        return opened

    def check_folders(self) -> None:
        """Check that the folders that were named are there: one that is not mounted here is missed at once.

        Raises:
            StorageError: A folder does not exist.
        """
        for url in self.read:
            if url.startswith("file://") and not (path := file_path(url)).is_dir():
                raise StorageError(
                    f"this machine has no folder {path}, which was named as a root of blobs (roots= or ${VARIABLE}): "
                    "mount it, or leave it out"
                )

    def owns(self, url: str, folder: Path | None) -> bool:
        """Whether blobs may be written to a root of the database, and removed from it.

        Args:
            url: The root, as the database has it.
            folder: The folder of the embedded warehouse.
        """
        return url in self.owned or url.startswith(("gridfs://", "memory://")) or _is_within(url, folder)

    def reads(self, url: str, folder: Path | None) -> bool:
        """Whether blobs may be read from a root of the database; the arguments are those of `owns`."""
        return url in self.read or self.owns(url, folder)

    def to_json(self) -> dict[str, Any]:
        """The argument of `from_json` in another process."""
        return {"owned": list(self.owned), "read": list(self.read)}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> OpenedRoots:
        """The roots that `to_json` names."""
        return cls(tuple(given["owned"]), tuple(given["read"]))


def not_opened(url: str) -> StorageError:
    """The error for a root that only the database names."""
    shown = without_secrets(url)
    return StorageError(
        f"the blobs are in {shown}, which this client was not told of: it stands only in the database, where others "
        f"can write. If it is right, type `tensordb roots add NAME {shlex.quote(shown)}`, or give it as "
        f"TensorDB(..., blobs={shown!r}) to write there, too, or as TensorDB(..., roots=[{shown!r}]) to read there"
    )


def not_owned(url: str) -> StorageError:
    """The error for a root that was opened for reading."""
    shown = without_secrets(url)
    return StorageError(
        f"new blobs would go to {shown}, which was opened for reading (roots= or ${VARIABLE}). Give "
        f"TensorDB(..., blobs=...) a place for them, or type `tensordb roots add NAME {shlex.quote(shown)}`"
    )


def _is_within(url: str, folder: Path | None) -> bool:
    """Whether a root is a folder within that of the warehouse, by its name alone: links there are its owner's."""
    if folder is None or "\0" in url:
        return False
    if url.startswith("file:///"):
        path = PurePosixPath(os.path.normpath(unquote(urlsplit(url).path)))
        return path.is_relative_to(os.path.abspath(folder)) or path.is_relative_to(os.path.realpath(folder))
    return "://" not in url and not url.startswith("/") and os.path.normpath(url).split("/")[0] != ".."
