"""References to blobs, as columns."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from bson import ObjectId

from tensordb_data.blobs.inline import INLINE
from tensordb_data.errors import StorageError

_INLINE: dict[str, Any] = {"k": INLINE, "o": 0}
_lock = threading.Lock()


def _new_lock() -> None:
    global _lock
    _lock = threading.Lock()


# A thread of the parent may have held it at the fork.
os.register_at_fork(after_in_child=_new_lock)


class Checks:
    """Which of some references have been checked by this process: their bounds, and their blobs' checksums.

    It lets every batch of a plan after the first pass know all that without a look at its segments.
    """

    def __init__(self, m: int) -> None:
        self.done = np.zeros(m, np.bool_)
        self.complete = False
        """Whether all have."""
        self.size: int | None = None
        """Stored bytes of each of those that have, where that is one number."""
        self._sizes: set[int | None] = set()

    def note(self, at: npt.NDArray[np.intp] | slice, size: int | None) -> None:
        """Note that those at some positions have been checked."""
        with _lock:
            if len(self._sizes) < 2:
                self._sizes.add(size)
            self.size = size if len(self._sizes) == 1 else None
            self.done[at] = True
            self.complete = bool(self.done.all())


@dataclasses.dataclass(frozen=True, eq=False)
class BlobRefs:
    """Where m blobs are: 16 to 21 bytes a blob instead of a dict each."""

    segments: tuple[ObjectId, ...]
    """The segments that `segment` counts in."""

    segment: npt.NDArray[np.uint32]
    """uint32[m]: which of `segments` holds the blob."""

    offset: npt.NDArray[np.int64]
    """int64[m]: where in the segment it begins."""

    length: npt.NDArray[np.int64]
    """int64[m]: bytes as stored."""

    compressed: npt.NDArray[np.bool_] | None = None
    """bool[m]: whether the stored bytes are zstd; None when none are."""

    checks: Checks | None = dataclasses.field(default=None, repr=False)
    """What this process knows of the references that these were taken from."""

    at: npt.NDArray[np.intp] | None = dataclasses.field(default=None, repr=False)
    """Which of those these are; None when these are the ones."""

    def __len__(self) -> int:
        return len(self.offset)

    def __reduce__(self) -> tuple[Any, ...]:
        return BlobRefs, (self.segments, self.segment, self.offset, self.length, self.compressed)

    def take(self, index: npt.NDArray[np.integer[Any]] | npt.NDArray[np.bool_] | slice | Sequence[int]) -> BlobRefs:
        """The references at those positions, in that order (or in a mask or slice)."""
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        else:
            index = np.asarray(index)
            index = np.flatnonzero(index) if index.dtype == np.bool_ else index.astype(np.intp, copy=False)
        checks = self.checks
        if checks is None:
            checks = Checks(len(self))
            object.__setattr__(self, "checks", checks)
        return BlobRefs(
            self.segments,
            self.segment[index],
            self.offset[index],
            self.length[index],
            None if self.compressed is None else self.compressed[index],
            checks,
            index if self.at is None else self.at[index],
        )

    @property
    def checked(self) -> bool:
        """Whether this process is known to have checked all of these before."""
        checks = self.checks
        if checks is None:
            return False
        done = checks.done if self.at is None else checks.done[self.at]
        return checks.complete or bool(done.all())

    def set_checked(self, size: int | None) -> None:
        """Note that this process has checked all of these, and their size where it is one."""
        if self.checks is not None:
            self.checks.note(slice(None) if self.at is None else self.at, size)

    @classmethod
    def from_docs(cls, docs: Sequence[Mapping[str, Any]]) -> BlobRefs:
        """The references in sample documents: `{k: segment, o: offset, n: stored length, z: true if zstd}` each, or
        inline ones, `{n, z}` with or without their bytes, whose segment is then `INLINE`.

        Raises:
            StorageError: a document is not such a reference.
        """
        numbers: dict[ObjectId, int] = {}
        try:
            if any("k" not in doc for doc in docs):
                docs = [{**_INLINE, **doc} if "k" not in doc and "o" not in doc else doc for doc in docs]
            segment = [numbers.setdefault(doc["k"], len(numbers)) for doc in docs]
            offset = np.array([doc["o"] for doc in docs], np.int64)
            length = np.array([doc["n"] for doc in docs], np.int64)
            compressed = np.array([doc.get("z", False) for doc in docs], np.bool_)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise StorageError(f"expected blob references of the form {{k, o, n}}, found others: {error!r}") from None
        return cls(
            tuple(numbers), np.array(segment, np.uint32), offset, length, compressed if compressed.any() else None
        )
