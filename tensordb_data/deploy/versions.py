"""Numbered versions in a folder, and `current`, a link to one of them that is always whole.

    models/000001/   models/000002/   models/current -> 000002

As TensorFlow Serving and others expect them. A version is written under another name, made durable and checked, then
renamed; the link is replaced by a rename too. A process killed at any point leaves the version that was served, or the
next one, and at most a folder whose name begins with a dot, which the next deployer removes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path

from tensordb_data.deploy.bundle import ABOUT, sync
from tensordb_data.errors import DeployError

_CURRENT, _STAGED, _LINK, _LOCK = "current", ".staged", ".current", ".deployer"


class Versions:
    """The versions in one folder. One process at a time may hold it.

    Args:
        folder: Made when it does not exist.
        keep: How many versions to keep besides the current one, at least 1.

    Raises:
        DeployError: Another deployer holds the folder, or it cannot be written.
    """

    def __init__(self, folder: Path, keep: int = 1) -> None:
        self.folder = folder.expanduser().absolute()
        self._keep = keep
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise DeployError(
                f"{self.folder} cannot hold versions: {error.strerror}; name a folder that can be written, or a new one"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel drops it however the process ends
        except OSError:
            pid = os.pread(self._lock, 20, 0).decode(errors="replace").strip()
            os.close(self._lock)
            raise DeployError(
                f"another deployer (pid {pid or 'unknown'}) holds {self.folder}; stop it first, or deploy elsewhere"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        self.drop_staged()

    def close(self) -> None:
        """Release the folder. A second call does nothing."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def numbers(self) -> list[int]:
        """The versions that are there, in order. A folder that holds something else is none."""
        return sorted(int(path.parent.name) for path in self.folder.glob(f"*/{ABOUT}") if path.parent.name.isdigit())

    @property
    def current(self) -> int | None:
        """The version that `current` leads to."""
        try:
            name = os.readlink(self.folder / _CURRENT)
        except FileNotFoundError:
            return None
        except OSError:
            raise DeployError(
                f"{self.folder / _CURRENT} is not a link of ours; move it away, or deploy elsewhere"
            ) from None
        return int(name) if name.isdigit() and self.path(int(name)).is_dir() else None

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
        return staged

    def drop_staged(self) -> None:
        """Removes what was written and not adopted."""
        shutil.rmtree(self.folder / _STAGED, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            (self.folder / _LINK).unlink()

    def adopt(self) -> int:
        """Makes the staged folder the next version, and leads `current` there; returns its number."""
        number = max((int(path.name) for path in self.folder.iterdir() if path.name.isdigit()), default=0) + 1
        os.rename(self.folder / _STAGED, self.path(number))
        self.lead(number)
        return number

    def lead(self, number: int) -> None:
        """Leads `current` to a version."""
        link = self.folder / _LINK
        with contextlib.suppress(FileNotFoundError):
            link.unlink()
        os.symlink(self.path(number).name, link)
        sync(self.folder)  # the version, before what leads there
        os.replace(link, self.folder / _CURRENT)
        sync(self.folder)

    def remove(self, number: int) -> None:
        """Remove a version. It is renamed first, so that no one takes a half-removed folder for a version."""
        gone = self.folder / _STAGED
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(self.path(number), gone)
        shutil.rmtree(gone, ignore_errors=True)

    def withdraw(self) -> None:
        """Removes `current`, where there is no version to lead it back to."""
        with contextlib.suppress(FileNotFoundError):
            (self.folder / _CURRENT).unlink()
        sync(self.folder)

    def retire(self) -> None:
        """Remove old versions, except for the current one and the `keep` versions before it."""
        current = self.current
        if current is not None:
            before = [number for number in self.numbers if number < current]
            for number in before[: max(0, len(before) - self._keep)]:
                self.remove(number)
