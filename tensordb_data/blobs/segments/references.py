"""References to blobs, as columns."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import numpy.typing as npt
from bson import ObjectId

from tensordb_data.blobs.segments.inline import INLINE
from tensordb_data.common.system.fork import at_fork
from tensordb_data.errors import StorageError

MALFORMED = -2
"""The length of a reference that is none: another tool has written it."""
REPLACED = -3
"""The length of a reference to a blob that was replaced, and of which the earlier bytes are gone."""

_INLINE: dict[str, Any] = {"k": INLINE, "o": 0}
_lock = threading.Lock()


def _new_lock() -> None:
    global _lock
    _lock = threading.Lock()


# A thread of the parent may have held it at the fork.
at_fork(after_in_child=_new_lock)


class Verified:
    """Which of some references were checked, within one generation of the reader."""

    def __init__(self, generation: object, m: int) -> None:
        self.generation = generation
        self.done = np.zeros(m, np.bool_)
        self.complete = False
        """Whether all of them were checked."""
        self.size: int | None = None
        """Stored bytes of each checked blob, if all have the same size."""
        self._sizes: set[int | None] = set()

    def extended(self, m: int) -> Verified:
        """The same of m references, of which these are the first ones."""
        longer = Verified(self.generation, m)
        longer.done[: len(self.done)] = self.done
        longer.size, longer._sizes = self.size, set(self._sizes)
        return longer

    def note(self, at: npt.NDArray[np.intp] | slice, size: int | None) -> None:
        """Note that the references at some positions were checked."""
        if len(self._sizes) < 2:
            self._sizes.add(size)
        self.size = size if len(self._sizes) == 1 else None
        self.done[at] = True
        self.complete = bool(self.done.all())


class ChecksumCache:
    """Remembers, in one process, which of some references were checked, and how much of each segment they use.

    A check compares the bounds of a reference, and the checksum of its blob. After the first pass over a plan, a batch
    needs no look at its segments. A check holds for one generation. A reader begins a new generation when it drops a
    cached segment, since another file may take its place.
    """

    def __init__(self, refs: BlobRefs) -> None:
        self._segment, self._length, self._segments = refs.segment, refs.length, len(refs.segments)
        self.verified: Verified | None = None
        self._share: tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]] | None = None

    def note(self, generation: object, at: npt.NDArray[np.intp] | slice, size: int | None) -> None:
        """Note that the references at some positions were checked."""
        with _lock:
            if self.verified is None or self.verified.generation is not generation:
                self.verified = Verified(generation, len(self._segment))
            self.verified.note(at, size)

    def share(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """For each segment, how many of its blobs the references use, and their bytes."""
        if self._share is None:
            length = np.maximum(self._length, 0)
            counts = np.bincount(self._segment, minlength=self._segments).astype(np.int64)
            self._share = counts, np.bincount(self._segment, length, self._segments).astype(np.float64)
        return self._share


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

    checksum_cache: ChecksumCache | None = dataclasses.field(default=None, repr=False)
    """Which of the references from which these were taken were checked."""

    at: npt.NDArray[np.intp] | None = dataclasses.field(default=None, repr=False)
    """The positions of these among them; None if these are all of them."""

    ahead: Future[Any] | None = dataclasses.field(default=None, repr=False, init=False)
    """The read of these that a reader has begun, if it was asked to prefetch them."""

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
        checksum_cache = self.checksum_cache
        if checksum_cache is None:
            checksum_cache = ChecksumCache(self)
            object.__setattr__(self, "checksum_cache", checksum_cache)
        return BlobRefs(
            self.segments,
            self.segment[index],
            self.offset[index],
            self.length[index],
            None if self.compressed is None else self.compressed[index],
            checksum_cache,
            index if self.at is None else self.at[index],
        )

    def checked(self, generation: object) -> bool:
        """Whether all of these were checked in this generation."""
        verified = None if self.checksum_cache is None else self.checksum_cache.verified
        if verified is None or verified.generation is not generation:
            return False
        return verified.complete or bool((verified.done if self.at is None else verified.done[self.at]).all())

    def set_checked(self, generation: object, size: int | None) -> None:
        """Note that all of these were checked, and their size if it is the same for all."""
        if self.checksum_cache is not None:
            self.checksum_cache.note(generation, slice(None) if self.at is None else self.at, size)

    def take_checks_from(self, first: BlobRefs) -> None:
        """Take over which references were checked, from others that are the first ones of these."""
        known = None if first.checksum_cache is None or first.at is not None else first.checksum_cache.verified
        if known is not None:
            cache = ChecksumCache(self)
            cache.verified = known.extended(len(self))
            object.__setattr__(self, "checksum_cache", cache)

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


def earlier(part: Mapping[str, Any], mutation: int) -> Mapping[str, Any] | None:
    """A reference as it was at a mutation of its dataset; None if the blob was replaced since, and nothing tells where
    the earlier one is.

    A reference that an update has put in the place of another says which mutation it came with, `m`, and what was there
    before, `was`.
    """
    since = part.get("m", 0)
    if not isinstance(since, int) or since <= mutation:
        return part
    was: Any = part.get("was")
    return earlier(was, mutation) if is_reference(was) and "k" in was else None


def is_reference(found: object) -> bool:
    """Whether a value in a document of a sample is a reference to a blob, as this library writes them.

    The bytes of an inline one may be missing, if they were not read.
    """
    if not isinstance(found, Mapping) or not _is_size(found.get("n")) or not isinstance(found.get("z", False), bool):
        return False
    if "k" in found or "o" in found:
        return isinstance(found.get("k"), ObjectId) and _is_size(found.get("o"))
    if "d" not in found:
        return True
    checksum = found.get("x")
    return isinstance(found["d"], bytes) and isinstance(checksum, int) and not isinstance(checksum, bool)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def references_of(doc: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the document of a sample has as references, by field. If it is malformed as a whole, there are none."""
    internals = doc.get("_tdb")
    found = internals.get("b") if isinstance(internals, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def at_row(error: StorageError, row: int) -> StorageError:
    """The error, with the position in the references that were read."""
    error.row = row
    return error


def joined_refs(parts: Sequence[BlobRefs]) -> BlobRefs:
    """The references of several parts, one after the other."""
    if len(parts) == 1:
        return parts[0]
    numbers: dict[ObjectId, int] = {}
    segment = [
        np.array([numbers.setdefault(id_, len(numbers)) for id_ in part.segments], np.uint32)[part.segment]
        for part in parts
    ]
    flags = [np.zeros(len(part), np.bool_) if part.compressed is None else part.compressed for part in parts]
    return BlobRefs(
        tuple(numbers),
        np.concatenate(segment),
        np.concatenate([part.offset for part in parts]),
        np.concatenate([part.length for part in parts]),
        None if all(part.compressed is None for part in parts) else np.concatenate(flags),
    )
