"""What the jobs on this host take of its GPUs and its other counted resources, by a file for each job.

The worker holds a lock on the file while its job runs. If the worker is killed, the kernel releases the lock, and what
the job had is free again. Only the workers of one user of the host share such files.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensordb_data.common.system import file_locks
from tensordb_data.common.user_cache import user_cache

GPU = "gpu"


class Slot:
    """What one job has taken, until `close`."""

    def __init__(self, devices: Sequence[str] = (), file: tuple[int, Path] | None = None) -> None:
        self.devices = tuple(devices)
        """The GPUs of the job, as in `CUDA_VISIBLE_DEVICES`."""
        self._file = file

    def close(self) -> None:
        """Gives everything back."""
        if self._file is not None:
            fd, path = self._file
            path.unlink(missing_ok=True)
            file_locks.close_fd(fd)
            self._file = None


class HostSlots:
    """The resources of a worker, as far as the other jobs of this host leave them.

    A GPU belongs to one job at a time, whatever its worker was told to have. The other resources of the machine are
    shared by all workers that were told of none; those that a worker was told of are its own.

    Args:
        has: What the worker has.
        shared: Whether this is what the machine has.
        gpus: How many GPUs the machine has.
        folder: Where the files are; None for the folder of this user and host.

    Attributes:
        problem: Why the workers of this host do not know of each other; None if they do.
    """

    def __init__(self, has: Mapping[str, float], *, shared: bool, gpus: int, folder: Path | None = None) -> None:
        self._has, self._shared = dict(has), shared
        self._devices = visible_devices() or [str(n) for n in range(max(gpus, math.ceil(has.get(GPU, 0))))]
        self._folder: Path | None = folder or _folder()
        self.problem: str | None = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            file_locks.close_fd(file_locks.acquire(self._folder / "guard", file_locks.LOCK_SH))
        except OSError as error:
            self.problem = f"{self._folder} cannot be used: {error.strerror}; set XDG_CACHE_HOME to a folder that can"
            self._folder = None

    def free(self) -> dict[str, float]:
        """What the worker has now, less what other jobs have taken."""
        with self._guarded():
            return self._free(self._taken())

    def take(self, requires: Mapping[str, float]) -> Slot | None:
        """Takes what a job requires; None if another job was faster."""
        wanted = {name: amount for name, amount in requires.items() if amount > 0}
        if not wanted:
            return Slot()
        with self._guarded():
            taken = self._taken()
            free = self._free(taken)
            if any(amount > free.get(name, 0.0) for name, amount in wanted.items()):
                return None
            devices = self._free_devices(taken)[: math.ceil(wanted.get(GPU, 0))]
            if self._folder is None:
                return Slot(devices)
            path = self._folder / f"{uuid.uuid4().hex}.job"
            fd = file_locks.acquire(path, file_locks.LOCK_EX | file_locks.LOCK_NB)
            os.write(fd, json.dumps({"takes": wanted, "devices": devices}).encode())
            return Slot(devices, (fd, path))

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Nobody else looks or takes meanwhile. This is never held for longer than a look at a few files."""
        if self._folder is None:
            yield
            return
        with file_locks.exclusive(self._folder / "guard"):
            yield

    def _taken(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for path in () if self._folder is None else self._folder.glob("*.job"):
            if not file_locks.is_held(path):
                path.unlink(missing_ok=True)  # its worker was killed
                continue
            with contextlib.suppress(OSError, ValueError):
                found.append(json.loads(path.read_text()))
        return found

    def _free(self, taken: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        free = dict(self._has)
        for job in taken if self._shared else ():
            for name, amount in job["takes"].items():
                if name in free:
                    free[name] = round(free[name] - amount, 6)
        if GPU in free:
            free[GPU] = min(self._has[GPU], len(self._free_devices(taken)))
        return {name: max(0.0, amount) for name, amount in free.items()}

    def _free_devices(self, taken: Sequence[Mapping[str, Any]]) -> list[str]:
        used = {device for job in taken for device in job["devices"]}
        return [device for device in self._devices if device not in used]


def visible_devices() -> list[str] | None:
    """The GPUs that this process was left with, as `CUDA_VISIBLE_DEVICES` names them; None if it does not say."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return None
    return [device.strip() for device in visible.split(",") if device.strip() not in ("", "-1")]


def _folder() -> Path:
    """A folder of this user, on this host since its start: a home folder may be that of many hosts."""
    return user_cache() / f"slots-{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
