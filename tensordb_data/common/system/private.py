"""The modes of new folders and files: for this user alone, unless the umask is asked to decide."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from tensordb_data.common.system.files import OWN_NO_WAIT

SHARED = "TENSORDB_SHARED"
"""The environment variable which, as 1, lets the umask decide who can read new folders and files."""


def is_shared() -> bool:
    """Whether the umask decides."""
    return os.environ.get(SHARED) == "1"


def file_mode() -> int:
    """The mode to make a file with."""
    return 0o666 if is_shared() else 0o600


def open_own(path: Path) -> int:
    """Open a file to read, if it is one that this user made, and that nobody else may write to.

    Raises:
        FileNotFoundError: There is none.
        ForeignFileError: It is another user's, or others may write to it.
        OSError: It cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | OWN_NO_WAIT)
    found = os.fstat(fd)
    if not hasattr(os, "geteuid"):  # Windows: the rights of a file are those of its folder, and its mode says nothing
        return fd
    if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022:
        return fd
    os.close(fd)
    raise ForeignFileError(
        f"{path}: expected a file of user {os.geteuid()} that nobody else may write to, found one of user "
        f"{found.st_uid} with mode {stat.S_IMODE(found.st_mode):04o}: give each user a cache folder of their own"
    )


class ForeignFileError(Exception):
    """A file is not of this user alone."""


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing. One that exists stays as it is.

    Raises:
        OSError: It cannot be made.
    """
    if not folder.is_dir():
        if not folder.parent.exists():
            make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o777 if is_shared() else 0o700)
        if not folder.is_dir():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))
