"""The work folder of an export: what is done stays in it when the process is killed, and the same call goes on.

NAME.partial/lock          held while somebody exports
NAME.partial/state.json    which call this is, and the digest of its samples
NAME.partial/done.jsonl    a line for each shard that is complete
NAME.partial/plan/         the index documents of the samples
NAME.partial/parts/        what becomes one file at the end
NAME.partial/files/        what becomes the folder NAME, in one step, at the end
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensordb_data.common.system.file_locks import LOCK_EX, LOCK_NB, acquire, close_fd, is_of
from tensordb_data.common.system.files import sync_folder
from tensordb_data.common.system.modules import libc
from tensordb_data.errors import StorageError
from tensordb_data.export.output import Entry, make_durable

MANIFEST = "manifest.json"
FORMAT = "tensordb-export"
_SUFFIX = ".partial"
_REPLACED = "replaced"
_OURS = {"lock", "state.json", "state.new", "done.jsonl", "plan", "parts", "files", _REPLACED}
_AT_FDCWD, _EXCHANGE = -100, 2


@dataclasses.dataclass(frozen=True)
class Shard:
    """Some samples that are written: those of one file, or of many small ones."""

    split: int
    """The position of its split in the plan."""
    rows: int
    files: list[Entry]
    parts: list[Entry] = dataclasses.field(default_factory=list)
    """Files of the folder `parts`."""
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What a format needs of it at the end."""


class WorkFolder:
    """The work folder beside a target, held by this process until `close`.

    Raises:
        StorageError: Another process holds it, or it cannot be made.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.folder = target.with_name(target.name + _SUFFIX)
        self.files, self.parts, self.plan = (self.folder / name for name in ("files", "parts", "plan"))
        self._lock = self._acquired()
        self.shards: list[Shard] = []
        self.is_mine = self.state() is None
        """Whether nothing of another call is here."""
        if (self.folder / _REPLACED).exists() and not os.path.lexists(target):  # half of an exchange was made
            try:
                os.rename(self.folder / _REPLACED, target)
            except BaseException:
                self.close()
                raise

    def _acquired(self) -> int:
        path = self.folder / "lock"
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                if self.folder.is_symlink() or not {found.name for found in self.folder.iterdir()} <= _OURS:
                    raise StorageError(f"{self.folder} is needed for what is not finished yet, and is not of an export:"
                                       " rename it, or choose another target")  # fmt: skip
                fd = acquire(path, LOCK_EX | LOCK_NB)
            except FileNotFoundError:  # another one has just finished
                continue
            except BlockingIOError:
                raise StorageError(f"another process is exporting to {self.target}: wait for it, or choose another "
                                   "folder") from None  # fmt: skip
            if is_of(fd, path):
                return fd
            close_fd(fd)

    def close(self) -> None:
        """Let another process go on."""
        close_fd(self._lock)

    # What was done before

    def state(self) -> dict[str, Any] | None:
        """What `begin` wrote; None if nothing was begun, or it cannot be read."""
        try:
            found = json.loads((self.folder / "state.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def begin(self, state: Mapping[str, Any]) -> None:
        """Throw away what an earlier call has written, and begin. A plan stays."""
        self._clear("lock", "plan")
        self.shards, self.is_mine = [], True
        for folder in (self.files, self.parts, self.plan):
            folder.mkdir(exist_ok=True)
        self.write_state(state)

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Say which call this is, in one step."""
        new = self.folder / "state.new"
        new.write_text(json.dumps(state, ensure_ascii=False))
        make_durable(self.folder, ["state.new"])
        os.replace(new, self.folder / "state.json")
        sync_folder(self.folder)

    def empty(self) -> None:
        """Throw away everything."""
        self._clear("lock")
        self.shards, self.is_mine = [], True

    def _clear(self, *kept: str) -> None:
        for path in self.folder.iterdir():
            if path.name not in kept:
                _remove(path)

    def resume(self) -> None:
        """Find the shards that are complete, and remove what was begun and not completed."""
        self.shards, self.is_mine = [], True
        lines = (self.folder / "done.jsonl").read_bytes().split(b"\n") if (self.folder / "done.jsonl").exists() else []
        for text in lines[:-1]:
            shard = _shard(text)
            if shard is None or not self._is_whole(shard):
                break
            self.shards.append(shard)
        kept = b"".join(text + b"\n" for text in lines[: len(self.shards)])
        (self.folder / "done.jsonl").write_bytes(kept)
        files = {entry.path for shard in self.shards for entry in shard.files}
        parts = {entry.path for shard in self.shards for entry in shard.parts}
        for folder, known in ((self.files, files), (self.parts, parts)):
            folder.mkdir(exist_ok=True)
            for path in _paths(folder):
                if path not in known:
                    (folder / path).unlink()
        self.plan.mkdir(exist_ok=True)

    def _is_whole(self, shard: Shard) -> bool:
        pairs = ((self.files, shard.files), (self.parts, shard.parts))
        return all(_size(folder / entry.path) == entry.bytes for folder, entries in pairs for entry in entries)

    def add(self, shard: Shard) -> None:
        """Note that a shard is complete, when its bytes are on the disk."""
        make_durable(self.files, [entry.path for entry in shard.files])
        make_durable(self.parts, [entry.path for entry in shard.parts])
        with open(self.folder / "done.jsonl", "ab", buffering=0) as file:
            file.write(json.dumps(dataclasses.asdict(shard)).encode() + b"\n")
            os.fsync(file.fileno())
        self.shards.append(shard)

    # The end

    def publish(self, replace: bool) -> None:
        """Give the files their final name, in one step, and remove the work folder.

        Args:
            replace: Whether there may be an earlier export of that name, which is removed.

        Raises:
            StorageError: There is something of that name, and it was not to be replaced.
        """
        for folder, _, _ in os.walk(self.files):
            sync_folder(Path(folder))
        if replace and self.target.exists():
            _exchange(self.files, self.target)
        else:
            try:
                os.rename(self.files, self.target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                raise StorageError(f"{self.target} exists now; choose another folder, or overwrite=True") from None
        sync_folder(self.target.parent)
        self.discard()

    def discard(self) -> None:
        """Remove the work folder; it stays held until `close`."""
        self._clear("lock")
        (self.folder / "lock").unlink(missing_ok=True)
        self.folder.rmdir()


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse to replace what is there, unless it is an export, or an empty folder, and may be replaced.

    Raises:
        StorageError: It is something else, or may not be replaced.
    """
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise StorageError(f"{target} exists already: choose another folder, or replace it with overwrite=True")
    if target.is_symlink() or not target.is_dir():
        raise StorageError(f"{target}: expected an earlier export to overwrite, found what is no folder: remove it")
    if read_manifest(target) is None and any(target.iterdir()):
        raise StorageError(f"{target}: expected an earlier export to overwrite, found a folder without a {MANIFEST} of "
                           "one: choose another folder, or empty it")  # fmt: skip


def read_manifest(target: Path) -> dict[str, Any] | None:
    """The manifest of an export without its list of files; None if there is none."""
    try:
        found = json.loads((target / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.get("format") == FORMAT else None


def _exchange(first: Path, second: Path) -> None:
    """Let two folders change places, in one step where the system can."""
    call = getattr(libc, "renameat2", None)
    if call is not None:
        paths = (ctypes.c_char_p(os.fsencode(first)), ctypes.c_char_p(os.fsencode(second)))
        if call(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], ctypes.c_uint(_EXCHANGE)) == 0:
            return
    aside = first.with_name(_REPLACED)
    os.rename(second, aside)
    os.rename(first, second)


def _shard(text: bytes) -> Shard | None:
    try:
        found = json.loads(text)
        entries = {name: [Entry(**entry) for entry in found[name]] for name in ("files", "parts")}
        shard = Shard(int(found["split"]), int(found["rows"]), **entries, extra=dict(found["extra"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    named = [*shard.files, *shard.parts]
    return shard if all(isinstance(entry.path, str) and is_below(entry.path) for entry in named) else None


def is_below(path: str) -> bool:
    """Whether a relative path stays below its folder."""
    return bool(path) and "\0" not in path and not {"", ".", ".."} & set(path.split("/"))


def _size(path: Path) -> int:
    try:
        found = path.lstat()
    except OSError:
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def _paths(folder: Path) -> Iterator[str]:
    for place, _, names in os.walk(folder):
        below = Path(place).relative_to(folder).as_posix()
        yield from (name if below == "." else f"{below}/{name}" for name in names)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
