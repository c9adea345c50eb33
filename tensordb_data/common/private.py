"""The modes of new folders and files: for this user alone, unless the umask is asked to decide."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

SHARED = "TENSORDB_SHARED"
"""The environment variable which, as 1, lets the umask decide who can read new folders and files."""


def is_shared() -> bool:
    """Whether the umask decides."""
    return os.environ.get(SHARED) == "1"


def file_mode() -> int:
    """The mode to make a file with."""
    return 0o666 if is_shared() else 0o600


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing. One that exists stays as it is.

    Raises:
        OSError: It cannot be made.
    """
    if not folder.is_dir():
        if folder.parent != folder:
            make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o777 if is_shared() else 0o700)
        if not folder.is_dir():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))
