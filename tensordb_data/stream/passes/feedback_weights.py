"""FeedbackWeights: the weights of passes that are drawn by feedback, each fixed when its pass begins.

Feedback changes all the time, and what it was cannot be read again. So the weights of a pass have a name, a digest of
them, which is in its state. They are kept in memory, in the cache of this host, and with plans that are sent or stored.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xxhash
from numpy.typing import NDArray

from tensordb_data.common.system.private import ForeignFileError, make_folder, open_own
from tensordb_data.errors import NotFoundError, QueryError, SampleError, StateError
from tensordb_data.feedback.reading import current_version, read_feedback
from tensordb_data.feedback.store import Version
from tensordb_data.stream.order.weights import cumulative_feedback
from tensordb_data.stream.plan.plan import Plan

if TYPE_CHECKING:
    from tensordb_data.feedback.value import Feedback
    from tensordb_data.warehouse.context import Warehouse

log = logging.getLogger("tensordb_data.stream")

_KEPT = 4
"""How many are kept in memory: of the pass that is delivered, of one that begins ahead of time, and of a pinned one."""
_FILES, _CAP = 64, 1 << 30  # files of a cache, and their bytes

Sums = NDArray[np.float64]


class FeedbackWeights:
    """The weights of the passes of one stream, as running sums."""

    def __init__(self, warehouse: Warehouse, feedback: Feedback) -> None:
        self._warehouse, self._feedback = warehouse, feedback
        self._known: dict[str, Sums] = {}
        self._read: tuple[Plan, Version, str] | None = None  # what was read last

    def drop(self) -> None:
        """Forget what can be read again from the cache of this host."""
        if (folder := self._folder) is not None:
            self._known = {name: sums for name, sums in self._known.items() if not (folder / f"{name}.f64").exists()}
        self._read = None

    def take_over(self, other: FeedbackWeights) -> None:
        """Use what another one has."""
        self._known, self._read = dict(other._known), other._read

    def now(self, plan: Plan) -> str:
        """Read the weights of a pass that begins now. Returns their name.

        Raises:
            NotFoundError, StorageError: See `read_feedback`.
            SampleError, QueryError: See `cumulative_feedback`.
        """
        feedback = self._feedback
        known = None if self._read is None or self._read[0] is not plan else self._read[2]
        if known is not None and known in self._known and self.is_current(known):
            return known
        moments, version = read_feedback(self._warehouse, feedback.run, feedback.name)
        sums = cumulative_feedback(plan.table, feedback, moments)
        name = self.keep(plan, sums)
        self._read = (plan, version, name)
        return name

    def is_current(self, name: str | None) -> bool:
        """Whether feedback is as it was when these weights were read."""
        return self._read is not None and self._read[2] == name and self._version() == self._read[1]

    def keep(self, plan: Plan, sums: Sums) -> str:
        """Keep weights that were read, or came with a plan. Returns their name."""
        name = _digest(plan, sums)
        if name not in self._known:
            self._note(name, sums)
            self._store(name, sums)
        return name

    def has(self, name: str | None, plan: Plan) -> bool:
        """Whether weights are known, in memory or in the cache of this host."""
        return name is None or self._find(name, plan) is not None

    def get(self, name: str, plan: Plan) -> Sums:
        """The weights of a pass that has begun.

        Raises:
            StateError: They are not known here, and feedback has changed.
        """
        found = self._find(name, plan)
        if found is None:
            with contextlib.suppress(NotFoundError, SampleError, QueryError):  # what it is now is not to blame
                found = self._known[name] if self.now(plan) == name else None
        if found is None:
            raise StateError(
                f"the pass is drawn by the feedback {self._feedback.name!r} of run {self._feedback.run!r} as it was"
                " when the pass began, and these weights are not kept on this machine: restore a checkpoint of the run,"
                ' which has them, or begin the next pass with load_state_dict(state, on_change="replan")'
            )
        return found

    def _find(self, name: str, plan: Plan) -> Sums | None:
        found = self._known.get(name)
        if found is None:
            found = self._open(name, plan)
            if found is not None:
                self._note(name, found)
        return found

    def _note(self, name: str, sums: Sums) -> None:
        while len(self._known) >= _KEPT:
            del self._known[next(iter(self._known))]
        self._known[name] = sums

    def _version(self) -> Version:
        return current_version(self._warehouse, self._feedback.run, self._feedback.name)

    # --- files ------------------------------------------------------------------------------------------------------

    @property
    def _folder(self) -> Path | None:
        folder = self._warehouse.cache_dir
        return None if folder is None else folder / "weights"

    def _open(self, name: str, plan: Plan) -> Sums | None:
        if (folder := self._folder) is None or not _is_name(name):
            return None
        try:
            with open(open_own(folder / f"{name}.f64"), "rb") as file:
                content = file.read(8 * len(plan) + 1)
        except (OSError, ForeignFileError):
            return None
        if len(content) != 8 * len(plan):
            return None
        sums = np.frombuffer(content, "<f8")
        return sums if _digest(plan, sums) == name else None  # of another user, or damaged

    def _store(self, name: str, sums: Sums) -> None:
        if (folder := self._folder) is None or (folder / f"{name}.f64").exists():
            return
        try:
            make_folder(folder)
            handle, temporary = tempfile.mkstemp(dir=folder, prefix="new-", suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(np.ascontiguousarray(sums, "<f8").data)
                os.replace(temporary, folder / f"{name}.f64")
            except BaseException:
                os.unlink(temporary)
                raise
            _evict(folder, name)
        except OSError as error:
            log.warning("cannot keep the weights of a pass in %s: %s", folder, str(error))


def _digest(plan: Plan, sums: Sums) -> str:
    digest = xxhash.xxh3_128(plan.ids.encode())
    digest.update(np.ascontiguousarray(sums, "<f8").data)
    return digest.hexdigest()


def _is_name(name: str) -> bool:
    return len(name) == 32 and set(name) <= set("0123456789abcdef")


def _evict(folder: Path, keep: str) -> None:
    found = []
    for path in folder.glob("*.f64"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            found.append((path.stem != keep, -status.st_mtime_ns, status.st_size, path))
    room = _CAP
    for place, (_, _, size, path) in enumerate(sorted(found, key=lambda each: each[:2])):
        room -= size
        if place >= _FILES or (room < 0 and path.stem != keep):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
