"""Files that stay where they are: below which root each of them is, and the ranges of them that are blobs."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensordb_data.blobs.stores.base import without_secrets
from tensordb_data.blobs.stores.foreign import ForeignFile, Root
from tensordb_data.errors import SchemaError, StorageError
from tensordb_data.schema import Array, Field, Text
from tensordb_data.warehouse import user_config

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_log = logging.getLogger("tensordb_data")
_NOT_IN_NAMES = re.compile(r"[^\w.-]+")


@dataclasses.dataclass(frozen=True)
class Range:
    """Some bytes of a file that stays where it is. A reader gives one in place of the bytes of a blob."""

    root: Root
    file: ForeignFile
    offset: int
    length: int
    """Bytes."""

    def read(self) -> bytes:
        """The bytes.

        Raises:
            StorageError: The file cannot be read, or has changed since it was looked at.
        """
        now, (data,) = self.root.read(self.file, [(self.offset, self.length)])
        if data is None or now != (self.file.size, self.file.mtime_ns):
            raise StorageError(f"{self.root.path / self.file.key}: it has changed while it was read: ingest again")
        return bytes(data)


MakeRange = Callable[[int, int], Range]
"""Makes a range of one file, of offset and length."""


def as_it_is(field: Field) -> bool:
    """Whether a field stores encoded bytes as they are in a file: an image, say, and no array or text."""
    return field.is_blob and not isinstance(field, (Array, Text))


def bytes_of(value: Any) -> Any:
    """The bytes of a value that may be a `Range`.

    Raises:
        StorageError: It cannot be read.
    """
    return value.read() if isinstance(value, Range) else value


class InPlace:
    """The roots of one ingest. Where no root holds the source, one is named after its folder, for this user.

    Args:
        warehouse: The warehouse.
        folders: The folder of the source, and others in which its files may be.
        dry_run: Whether nothing is written down.
    """

    def __init__(self, warehouse: Warehouse, folders: Sequence[Path], dry_run: bool) -> None:
        self._warehouse, self._dry = warehouse, dry_run
        self._new: dict[str, Root] = {}
        for folder in folders:
            if not holding(self.named, folder) and not _is_wide(folder):
                self._new[self._name(folder)] = Root(folder)

    @property
    def named(self) -> dict[str, Root]:
        """The roots, by name."""
        return {**self._warehouse.blobs.named, **self._new}

    def begin(self) -> None:
        """Note the roots that were named for this source, before the first sample points into one."""
        if not self._new or self._dry:
            return
        paths = {name: str(root.path) for name, root in self._new.items()}
        user_config.write_files({**user_config.files_of_user(), **paths})
        for name, root in self._new.items():
            self._warehouse.blobs.open_root(name, root)
            # A program that reads the samples on another machine has to name it: so whoever ingests should know.
            _log.warning("the root %r is %s from now on, as %s says", name, root.path, user_config.path())
        self._new = {}

    def file(self, path: Path) -> tuple[Root, ForeignFile]:
        """A file as it is now, below the nearest root.

        Raises:
            StorageError: No root holds it, or it cannot be read.
        """
        found = holding(self.named, path)
        if not found:
            raise StorageError(
                f"{path}: no root holds this file; name a folder above it, as in roots={{'NAME': {str(path.parent)!r}}}"
            )
        name, root, key = found[0]
        return root, ForeignFile(name, key, *root.state(name, key))

    def whole(self, path: Path) -> Range:
        """A whole file as a blob; see `file`."""
        root, file = self.file(path)
        return Range(root, file, 0, file.size)

    def _name(self, folder: Path) -> str:
        """A name for the root at a folder."""
        name = _NOT_IN_NAMES.sub("-", folder.name).strip("-.")[:80] or "files"
        taken = name in {*user_config.roots_of_user(), *user_config.files_of_user(), *self.named}
        if not taken:
            # Another machine may have given it: then it may be this folder, or not, and only the user knows.
            taken = self._warehouse.index["segments"].find_one({"roots": name}, {"_id": 1}) is not None
        if taken:
            raise SchemaError(
                f"in_place: the root of {folder} would be called {name!r}, and there is one of this name. If it is this"
                f" folder, say so: roots={{{name!r}: {str(folder)!r}}}; otherwise choose another name in its place"
            )
        return name


def holding(named: Mapping[str, Root], path: str | Path) -> list[tuple[str, Root, str]]:
    """The roots that hold a path, the nearest first: name, root, and the key of the path."""
    found = [(name, root, key) for name, root in named.items() if (key := root.key_of(path)) is not None]
    return sorted(found, key=lambda item: (len(item[2]), item[0]))


def _is_wide(folder: Path) -> bool:
    """Whether a folder holds so much that only the user may open it: the home of this user, or one above it."""
    try:
        home = Path.home().resolve()
    except RuntimeError:
        return folder.parent == folder
    return home == folder.resolve() or folder.resolve() in home.parents


def refused(what: str) -> SchemaError:
    """The error for a source that cannot stay where it is."""
    return SchemaError(f"in_place: {what}; without in_place=True it is copied")


def check_local(root: str) -> Path:
    """A place of a source as a path.

    Raises:
        SchemaError: It is not on this machine.
    """
    if "://" in root:
        shown = without_secrets(root)
        raise refused(f"{shown} is not on this machine, and samples point into files of mounted folders only")
    return Path(os.path.abspath(root))
