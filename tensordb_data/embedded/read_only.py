"""Serve a folder that cannot be written: its index is copied for this user, and the server runs on the copy.

mongod writes to its files even if its clients only read. So a folder on a read-only disk, or of another user, has its
`mongo/` copied into the user's cache. Processes share the copy and its server. It is kept, and made again once the
folder has changed. Blobs are read where they are.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat

from tensordb_data.common.system import file_locks
from tensordb_data.common.user_cache import user_cache
from tensordb_data.embedded.paths import Layout, locate, private_directory, read_json, write_json
from tensordb_data.embedded.session import Session, join
from tensordb_data.errors import EmbeddedServerError, NotFoundError

_ATTEMPTS = 3
_LEFT_OUT = shutil.ignore_patterns("mongod.lock", "diagnostic.data")

State = list[list[str | int]]
"""Name, size and time of change of each file."""


def join_copy(folder: str | os.PathLike[str]) -> Session:
    """Join the server of a folder that is only read, or that of its copy if the folder cannot be written.

    Args:
        folder: The warehouse folder.

    Raises:
        NotFoundError: It holds no warehouse.
        EmbeddedServerError: As for `join`; or its files change all the time, since they are served elsewhere.
    """
    layout = locate(folder)
    if not layout.mongo.is_dir():
        raise NotFoundError(f"there is no warehouse in {layout.folder}, and with read_only=True none is made: check the"
                            " path, or open it once without")  # fmt: skip
    if is_writable(layout):
        return join(layout.folder)
    copies = user_cache() / "copies"
    copies.mkdir(mode=0o700, parents=True, exist_ok=True)
    private_directory(copies)
    copy = locate(copies / hashlib.sha256(str(layout.folder).encode()).hexdigest()[:16])
    private_directory(copy.folder)
    with file_locks.exclusive(copies / f"{copy.folder.name}.lock"):
        state = _state(layout)
        if read_json(copy.folder / "source.json") != {"files": state}:
            _renew(layout, copy)
        return join(copy.folder)


def is_writable(layout: Layout) -> bool:
    """Whether this user can run a server in the folder."""
    return all(os.access(path, os.W_OK | os.X_OK) for path in (layout.folder, layout.mongo)) and not any(
        path.exists() and not os.access(path, os.W_OK)
        for path in (layout.start_lock, layout.mongo / "WiredTiger.wt", layout.mongo / "mongod.lock")
    )


def _renew(layout: Layout, copy: Layout) -> None:
    """Copy the index. A state of the files that did not change meanwhile is one that mongod can start from."""
    if copy.server_lock.exists():
        try:
            file_locks.close_fd(file_locks.acquire(copy.server_lock, file_locks.LOCK_EX | file_locks.LOCK_NB))
        except BlockingIOError:
            raise EmbeddedServerError(
                f"{layout.folder} has changed, and other processes of this user still read its copy of before: end them"
                " first"
            ) from None
        file_locks.wait_released(copy.supervisor_lock)  # its server ends a moment after the last client has left
    for _ in range(_ATTEMPTS):
        shutil.rmtree(copy.mongo, ignore_errors=True)
        (copy.folder / "source.json").unlink(missing_ok=True)
        before = _state(layout)
        try:
            shutil.copytree(layout.mongo, copy.mongo, ignore=_LEFT_OUT)
            if layout.manifest.exists():
                shutil.copyfile(layout.manifest, copy.manifest)
        except (OSError, shutil.Error) as error:
            if _state(layout) == before:
                raise EmbeddedServerError(f"the index of {layout.folder} cannot be copied: {error}") from None
        if _state(layout) == before:
            copy.mongo.chmod(0o700)
            write_json(copy.folder / "source.json", {"files": before})
            return
    raise EmbeddedServerError(
        f"the files of {layout.folder} change while they are copied: its server runs elsewhere. Connect to that server"
        " by its address, or end it"
    )


def _state(layout: Layout) -> State:
    files: State = []
    for path in sorted(layout.mongo.rglob("*")):
        if path.name == "mongod.lock" or "diagnostic.data" in path.parts:
            continue
        try:
            info = path.stat()
        except FileNotFoundError:  # removed meanwhile: they change
            continue
        if stat.S_ISREG(info.st_mode):
            files.append([str(path.relative_to(layout.mongo)), info.st_size, info.st_mtime_ns])
    return files
