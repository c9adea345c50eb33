"""The paths of the files in a warehouse folder, and of its sockets."""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tensordb_data.common.system.modules import require_linux
from tensordb_data.common.system.private import make_folder
from tensordb_data.errors import EmbeddedServerError

FORMAT = 1
SOCKET_PATH_BYTES = 100  # the kernel takes 107


@dataclass(frozen=True)
class Layout:
    """The files of one warehouse folder. `folder` is a real path, without links."""

    folder: Path

    @property
    def mongo(self) -> Path:
        """The data of mongod."""
        return self.folder / "mongo"

    @property
    def manifest(self) -> Path:
        """The format of the folder and the server version that wrote it."""
        return self.folder / "tensordb.json"

    @property
    def log(self) -> Path:
        """The log of mongod."""
        return self.folder / "mongod.log"

    @property
    def server_lock(self) -> Path:
        """Each client holds a share for as long as it is connected."""
        return self.folder / "server.lock"

    @property
    def start_lock(self) -> Path:
        """Held while somebody decides to start or stop the server."""
        return self.folder / "start.lock"

    @property
    def supervisor_lock(self) -> Path:
        """Held by the supervisor for its whole life."""
        return self.folder / "supervisor.lock"

    @property
    def keep(self) -> Path:
        """Written by `tensordb up`: run without clients."""
        return self.folder / "keep.json"

    @property
    def keyfile(self) -> Path:
        """The key that makes mongod demand credentials."""
        return self.folder / "keyfile"

    @property
    def credentials(self) -> Path:
        """User name and password of the folder, once it was opened on TCP."""
        return self.folder / "credentials.json"

    def identity(self) -> dict[str, Any]:
        """What makes this folder, on this machine since its start, this one and not a copy of it."""
        info = self.folder.stat()
        return {
            "path": str(self.folder),
            "device": info.st_dev,
            "inode": info.st_ino,
            "boot": _system_id(),
        }

    def state(self) -> dict[str, Any] | None:
        """What the supervisor wrote about the running (or last) server; None when it is about another folder."""
        return self._mine(self.folder / "server.json")

    def kept(self) -> dict[str, Any] | None:
        """What `tensordb up` asked for, or None."""
        return self._mine(self.keep)

    def _mine(self, path: Path) -> dict[str, Any] | None:
        found = read_json(path)
        return found if found and found.get("identity") == self.identity() else None

    def socket(self, run: str) -> Path:
        """The socket that clients use: it exists while the server takes writes."""
        return Path(run) / "mongod.sock"

    def release(self) -> str | None:
        """The release of MongoDB whose file format the folder has, "6.0"; None for one that no server has written."""
        found = read_json(self.manifest)
        return str(found["release"]) if found and "release" in found else None

    @property
    def restoring(self) -> Path:
        """There while a backup is brought back into the folder, which nothing else may open then."""
        return self.folder / "restoring.json"

    def prepare(self) -> None:
        """Make the folder and its subfolders, and check that this version can use them.

        Raises:
            EmbeddedServerError: They cannot be made, are of another format, or are not complete.
        """
        self.make()
        if self.restoring.exists():
            raise EmbeddedServerError(
                f"a backup is being restored into {self.folder}, or its restore was stopped: make it again with "
                "`tensordb backup restore`, or remove the folder"
            )
        found = read_json(self.manifest)
        if found and found.get("format") != FORMAT:
            raise EmbeddedServerError(
                f"{self.folder} has format {found.get('format')}, and this version of tensordb-data reads format "
                f"{FORMAT}: install the version that wrote it, or a newer one"
            )

    def make(self) -> None:
        """Make the folder and its subfolders."""
        try:
            make_folder(self.folder)
            self.mongo.mkdir(mode=0o700, exist_ok=True)
            for lock in (self.start_lock, self.server_lock, self.supervisor_lock):
                os.close(os.open(lock, os.O_RDWR | os.O_CREAT, 0o600))
        except (FileExistsError, NotADirectoryError) as error:
            raise EmbeddedServerError(f"{error.filename} is a file: a folder was expected, choose another") from None
        except OSError as error:
            raise EmbeddedServerError(
                f"the warehouse folder {self.folder} is not writable ({error.strerror}: {error.filename}): "
                "check its owner and permissions, choose another folder, or open this one with read_only=True"
            ) from None

    def choose_run(self) -> str:
        """The private directory for the sockets: the recorded one, ``run/`` in the folder, or a short one elsewhere."""
        state = self.state()
        inside = self.folder / "run"
        run = str(state["run"]) if state else str(inside)
        if not state and not (_fits_a_socket(inside) and _takes_fifos(self.folder)):
            return tempfile.mkdtemp(prefix="tensordb-", dir=_short_directory())
        private_directory(Path(run))
        return run


def locate(folder: str | os.PathLike[str]) -> Layout:
    """The layout of `folder`, which need not exist.

    Raises:
        EmbeddedServerError: Nobody can serve a folder on this system.
    """
    connect = "connect to a server by its address (mongodb://…), which may run anywhere"
    require_linux("the servers of warehouse folders", connect, EmbeddedServerError)
    return Layout(Path(os.path.realpath(os.path.expanduser(folder))))


def socket_uri(path: Path, credentials: dict[str, str] | None) -> str:
    """The URI for pymongo of a server that listens on the socket `path`."""
    user = f"{quote(credentials['user'], safe='')}:{quote(credentials['password'], safe='')}@" if credentials else ""
    return f"mongodb://{user}{quote(str(path), safe='')}/?directConnection=true"


def private_directory(path: Path) -> None:
    """Make `path` for this user alone, or check that it is so."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        info = path.lstat()
    except OSError as error:
        raise EmbeddedServerError(f"cannot make {path} for the server's sockets: {error.strerror}") from None
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
        raise EmbeddedServerError(f"{path} should be a directory of this user, and is not: remove it and connect again")
    if info.st_mode & 0o077:
        path.chmod(0o700)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in the file, or None when there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the file, readable by this user alone, in one step."""
    temporary = path.with_name(path.name + ".new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        json.dump(content, file)
    os.replace(temporary, path)


def _short_directory() -> str:
    wanted = (os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp")
    for path in wanted:
        if path and _fits_a_socket(Path(path, "tensordb-12345678")) and os.access(path, os.W_OK | os.X_OK):
            return path
    raise EmbeddedServerError(f"no short, writable directory for a socket among {wanted}: set XDG_RUNTIME_DIR to one")


def _fits_a_socket(directory: Path) -> bool:
    """Whether a socket in there has a path that the kernel takes, and that mongod does not read as a list or a port."""
    path = str(directory / "server.sock")
    return len(path) <= SOCKET_PATH_BYTES and re.fullmatch(r"[A-Za-z0-9_./+=-]+", path) is not None


def _takes_fifos(folder: Path) -> bool:
    probe = folder / f".fifo-{os.getpid()}"
    try:
        os.mkfifo(probe)
        probe.unlink()
    except OSError:
        return False
    return True


@functools.cache
def _system_id() -> str:
    """This machine since its start, and this container: where a pid and a socket mean something."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()
