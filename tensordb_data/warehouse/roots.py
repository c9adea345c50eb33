"""Which blob roots a client may use: those that its own user has named, whatever the database says.

A database names the roots in which its blobs are. Whoever can write to it could name any folder or bucket there. So a
client uses a root of the database only if it is one of these:

- a folder within that of its embedded warehouse, GridFS in its own database, or memory of its own process;
- the place that was given as `blobs=`, or a root of the user's config file;
- for reading only: the places that were given as `roots=`, or in `$TENSORDB_ROOTS`.

Samples may also point into files of others, below a root of which the database holds only the name. Where such a root
is, the client says: `roots={"photos": "/mnt/photos"}`, `TENSORDB_ROOTS=photos=/mnt/photos`, or the user's config file.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from tensordb_data.blobs.stores.base import without_secrets
from tensordb_data.blobs.stores.foreign import Root, is_root_name, no_folder
from tensordb_data.common.system.file_urls import file_path
from tensordb_data.errors import StorageError
from tensordb_data.warehouse.catalog import resolve_blobs
from tensordb_data.warehouse.user_config import files_of_user, roots_of_user

VARIABLE = "TENSORDB_ROOTS"
_NAMED = re.compile(r"(\w[\w.-]*)=(.+)", re.DOTALL)

Roots = Sequence[str | Path] | Mapping[str, "str | Path | Root"]
"""What `roots=` takes: places of blobs, or folders of files by the names of roots."""


@dataclass(frozen=True)
class OpenedRoots:
    """The roots that a user has opened, as URLs. They go with a warehouse into other processes."""

    owned: tuple[str, ...] = ()
    """Blobs are read, written and removed there."""
    read: tuple[str, ...] = ()
    """Blobs are read there."""
    named: dict[str, Root] = field(default_factory=dict)
    """Folders of files that samples point into. They are read, and never written."""
    given: tuple[str, ...] = ()
    """The names of those that must be there."""

    @classmethod
    def of_user(cls, blobs: str | None, roots: Roots | None, folder: Path | None) -> OpenedRoots:
        """What the arguments, the environment and the config file of this user name.

        Args:
            blobs: `blobs=`, as it is recorded.
            roots: `roots=`.
            folder: The folder of the embedded warehouse.

        Raises:
            StorageError: One of them is no place for blobs, or is a folder that does not exist.
        """
        if isinstance(roots, (str, Path)) or not isinstance(roots, (Sequence, Mapping, type(None))):
            raise StorageError(
                f"roots= is a list of folders and URLs, such as roots=[{str(roots)!r}], or a dict of folders by name: "
                f"roots={{'photos': '/mnt/photos'}}; found {roots!r:.200}"
            )
        variable = [text for text in map(str.strip, os.environ.get(VARIABLE, "").split(",")) if text]
        pairs = {match[1]: match[2] for text in variable if (match := _NAMED.fullmatch(text))}
        places = [text for text in variable if not _NAMED.fullmatch(text)]
        given: dict[str, Any] = {**pairs, **(roots if isinstance(roots, Mapping) else {})}
        files = {check_root_name(name): one if isinstance(one, Root) else Root(one) for name, one in given.items()}
        known = {name: file_path(url) for name, url in roots_of_user().items() if url.startswith("file://")}
        known.update((name, Path(path)) for name, path in files_of_user().items())
        urls = [] if isinstance(roots, Mapping) else list(roots or ())
        owned = [*([] if blobs is None else [blobs]), *roots_of_user().values()]
        read = [resolve_blobs(url, folder, "roots=") for url in (*urls, *places)]
        named = {**{name: Root(path) for name, path in known.items()}, **files}
        opened = cls(tuple(owned), tuple(read), named, tuple(files))
        opened.check_folders()
        return opened

    def with_own(self, own: OpenedRoots) -> OpenedRoots:
        """These, which have come from another process, and those of the user here, who says where a name is."""
        return OpenedRoots(
            tuple(dict.fromkeys([*self.owned, *own.owned])),
            tuple(dict.fromkeys([*self.read, *own.read])),
            {**self.named, **own.named},
            tuple(dict.fromkeys([*self.given, *own.given])),
        )

    def root(self, name: str) -> Root:
        """The root of a name.

        Raises:
            StorageError: This client has not opened it.
        """
        found = self.named.get(name)
        if found is None:
            raise not_named(name, self.named)
        return found

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
        for name in self.given:
            if not self.named[name].path.is_dir():
                raise no_folder(name, self.named[name])

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
        named = {name: [str(root.path), root.stable] for name, root in self.named.items()}
        return {"owned": list(self.owned), "read": list(self.read), "named": named, "given": list(self.given)}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> OpenedRoots:
        """The roots that `to_json` names."""
        named = {name: Root(path, stable) for name, (path, stable) in given.get("named", {}).items()}
        return cls(tuple(given["owned"]), tuple(given["read"]), named, tuple(given.get("given", ())))


def not_named(name: str, known: Mapping[str, Root]) -> StorageError:
    """The error for a root of files that this client has not opened."""
    there = f"; opened are {', '.join(sorted(known))}" if known else ""
    return StorageError(
        f"samples point into files below the root {name!r}, and this client was not told where that is: give "
        f"TensorDB(..., roots={{{name!r}: PATH}}), set {VARIABLE}={name}=PATH, or type `tensordb roots add --read-only"
        f" {shlex.quote(name)} PATH`{there}"
    )


def check_root_name(name: object) -> str:
    """The name itself, if it is one of a root.

    Raises:
        StorageError: It is none.
    """
    if not isinstance(name, str) or not is_root_name(name):
        raise StorageError(
            f"the name of a root is made of letters, digits, '_', '.' and '-', at most 100 of them; found {name!r:.120}"
        )
    return name


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
