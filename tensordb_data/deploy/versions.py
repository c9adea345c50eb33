"""Numbered versions in a folder, and `current`, a link to one of them that is always whole.

    models/000001/   models/000002/   models/current -> 000002

As TensorFlow Serving and others expect them. A version is written under another name, made durable and checked, then
renamed; the link is replaced by a rename too. A process killed at any point leaves the version that was served, or the
next one, and at most a folder whose name begins with a dot, which the next deployer removes.

Each version has a marker, a file that is written before anything else. A folder without it is not ours: it is never
removed or changed. Version 0.1 wrote no markers. Its versions get one if all that is in them says that it was written
by a deployer.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from pathlib import Path

from tensordb_data.common.system import file_locks
from tensordb_data.common.system.file_locks import LOCK_EX, LOCK_NB
from tensordb_data.common.system.files import OWN, read_at, sync_folder, write_at
from tensordb_data.deploy.bundle import ABOUT, TENSORS, is_bundle, put
from tensordb_data.errors import DeployError

_CURRENT, _STAGED, _LINK, _LOCK = "current", ".staged", ".current", ".deployer"
_MARKER = ".tensordb-version"
_MARK = b"A deployer of tensordb-data has written this folder, and removes it when it is not needed any more.\n"
_NUMBER = re.compile("[0-9]+")
_LINKED = re.compile("[0-9]{6,}")

log = logging.getLogger("tensordb.continuous")


class Versions:
    """The versions in one folder. One process at a time may hold it.

    Args:
        folder: Made when it does not exist.
        keep: How many versions to keep besides the current one, at least 1.

    Raises:
        DeployError: Another deployer holds the folder, it cannot be written, or something in it that is not ours has a
            name that a version or a link of ours would have.
    """

    def __init__(self, folder: Path, keep: int = 1) -> None:
        self.folder = folder.expanduser().absolute()
        self._keep = keep
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            unmarked = self._unmarked()  # before anything is written: nothing is left where we are refused
            flags = os.O_RDWR | os.O_CREAT | OWN
            self._lock = os.open(self.folder / _LOCK, flags, 0o644)
        except OSError as error:
            raise DeployError(
                f"{self.folder} cannot hold versions: {error.strerror}; name a folder that can be written, or a new one"
            ) from None
        try:
            file_locks.lock(self._lock, LOCK_EX | LOCK_NB)  # the kernel drops it however the process ends
        except BlockingIOError:
            pid = read_at(self._lock, 20, 0).decode(errors="replace").strip()
            os.close(self._lock)
            raise DeployError(
                f"another deployer (pid {pid or 'unknown'}) holds {self.folder}; stop it first, or deploy elsewhere"
            ) from None
        except OSError as error:
            os.close(self._lock)
            raise DeployError(
                f"{self.folder} cannot be locked ({error.strerror}): deploy into a folder of a file system with locks"
            ) from None
        os.ftruncate(self._lock, 0)
        write_at(self._lock, f"{os.getpid()}\n".encode(), 0)
        for path in unmarked:
            put(path / _MARKER, [_MARK])
            sync_folder(path)
        self.drop_staged()

    def _unmarked(self) -> list[Path]:
        """The versions of 0.1.

        Raises:
            DeployError: Something is in the way.
        """
        old = []
        lock = self.folder / _LOCK
        known = os.path.lexists(lock)
        if known and (
            lock.is_symlink() or not lock.is_file() or not re.fullmatch(rb"[0-9]*\n?", lock.read_bytes()[:99])
        ):
            raise self._in_the_way(lock)
        for path in sorted(self.folder.iterdir()):
            if _NUMBER.fullmatch(path.name) and not _is_ours(path):
                if not known or path.is_symlink() or path.name != f"{int(path.name):06d}" or not is_bundle(path):
                    raise self._in_the_way(path)
                old.append(path)
        _ = self.current
        self._check_leftovers()
        return old

    def _check_leftovers(self) -> None:
        staged, link = self.folder / _STAGED, self.folder / _LINK
        if os.path.lexists(staged) and not (_is_ours(staged) or _is_begun(staged)):
            raise self._in_the_way(staged)
        if os.path.lexists(link) and not (link.is_symlink() and _LINKED.fullmatch(os.readlink(link))):
            raise self._in_the_way(link)

    def _in_the_way(self, path: Path) -> DeployError:
        return DeployError(
            f"{path} was not written by a deployer (it has no {_MARKER}), and has a name that a deployer uses. It "
            "stays as it is: move it away, or deploy into another folder"
        )

    def close(self) -> None:
        """Release the folder. A second call does nothing."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def numbers(self) -> list[int]:
        """The versions that are there, in order. A folder without our marker is none."""
        return sorted(
            int(path.name) for path in self.folder.iterdir() if _NUMBER.fullmatch(path.name) and _is_ours(path)
        )

    @property
    def current(self) -> int | None:
        """The version that `current` leads to."""
        try:
            name = os.readlink(self.folder / _CURRENT)
        except FileNotFoundError:
            return None
        except OSError:
            raise self._in_the_way(self.folder / _CURRENT) from None
        if not _LINKED.fullmatch(name):
            raise self._in_the_way(self.folder / _CURRENT)
        return int(name) if _is_ours(self.path(int(name))) else None

    @property
    def previous(self) -> int | None:
        """The newest version before the current one."""
        current = self.current
        return max((number for number in self.numbers if current is not None and number < current), default=None)

    def path(self, number: int) -> Path:
        """The folder of a version."""
        return self.folder / f"{number:06d}"

    def stage(self) -> Path:
        """An empty folder for the next version."""
        self.drop_staged()
        staged = self.folder / _STAGED
        staged.mkdir()
        put(staged / _MARKER, [_MARK])
        return staged

    def drop_staged(self) -> None:
        """Removes what was written and not adopted.

        Raises:
            DeployError: It is not ours.
        """
        self._check_leftovers()
        if (self.folder / _STAGED).exists():
            _remove(self.folder / _STAGED)
        with contextlib.suppress(FileNotFoundError):
            (self.folder / _LINK).unlink()

    def adopt(self) -> int:
        """Makes the staged folder the next version, and leads `current` there; returns its number."""
        number = max((int(path.name) for path in self.folder.iterdir() if _NUMBER.fullmatch(path.name)), default=0) + 1
        os.rename(self.folder / _STAGED, self.path(number))
        self.lead(number)
        return number

    def lead(self, number: int) -> None:
        """Leads `current` to a version."""
        link = self.folder / _LINK
        _ = self.current  # which raises an error if it is not ours
        self._check_leftovers()
        with contextlib.suppress(FileNotFoundError):
            link.unlink()
        os.symlink(self.path(number).name, link)
        sync_folder(self.folder)  # the version, before what leads there
        os.replace(link, self.folder / _CURRENT)
        sync_folder(self.folder)

    def remove(self, number: int) -> None:
        """Remove a version. It is renamed first, so that no one takes a half-removed folder for a version.

        A version into which someone has put more files stays.
        """
        if more := set(os.listdir(self.path(number))) - _OURS:
            log.warning("%s is not removed: it holds %s, which is not ours", self.path(number), sorted(more)[0])
            return
        self.drop_staged()
        os.rename(self.path(number), self.folder / _STAGED)
        _remove(self.folder / _STAGED)

    def withdraw(self) -> None:
        """Removes `current`, where there is no version to lead it back to."""
        _ = self.current  # which raises an error if it is not ours
        with contextlib.suppress(FileNotFoundError):
            (self.folder / _CURRENT).unlink()
        sync_folder(self.folder)

    def retire(self) -> None:
        """Remove old versions, except for the current one and the `keep` versions before it."""
        current = self.current
        if current is not None:
            before = [number for number in self.numbers if number < current]
            for number in before[: max(0, len(before) - self._keep)]:
                self.remove(number)


_OURS = {ABOUT, TENSORS, _MARKER}


def _is_ours(path: Path) -> bool:
    """Whether a folder has our marker."""
    try:
        return not path.is_symlink() and (path / _MARKER).read_bytes() == _MARK
    except OSError:
        return False


def _is_begun(path: Path) -> bool:
    """Whether nothing but a part of the marker is in a folder: a deployer was killed as it made or removed it."""
    if path.is_symlink() or not path.is_dir() or not set(os.listdir(path)) <= {_MARKER}:
        return False
    marker = path / _MARKER
    return not os.path.lexists(marker) or (marker.is_file() and _MARK.startswith(marker.read_bytes()))


def _remove(folder: Path) -> None:
    """Remove a folder of ours; the marker goes last, so that a kill leaves a folder that is known as ours.

    Raises:
        DeployError: It holds more than a version.
    """
    if more := set(os.listdir(folder)) - _OURS:
        raise DeployError(f"{folder} holds {sorted(more)[0]}, which no deployer has written; move it away")
    for name in (ABOUT, TENSORS, _MARKER):
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()
