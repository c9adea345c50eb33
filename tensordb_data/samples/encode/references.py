"""The references of one field of many samples, as columns."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt
from bson import ObjectId

from tensordb_data.blobs.segments.inline import checksum, inline_reference
from tensordb_data.samples.encode import pieces
from tensordb_data.samples.encode.pieces import Piece

_RAW, _PACKED, _MISSING, _INLINE, _INLINE_PACKED = range(5)

Place = tuple[int, int, int, bytes | None]
"""Where one blob is: the kind of place, the offset, the length, and the stored bytes if they go into the document."""

MISSING: Place = (_MISSING, 0, 0, None)
"""There is no blob."""


def in_segment(offset: int, length: int, compressed: bool) -> Place:
    """A blob is in the segment."""
    return (_PACKED if compressed else _RAW), offset, length, None


def in_document(stored: bytes, compressed: bool) -> Place:
    """A blob goes into the document."""
    return (_INLINE_PACKED if compressed else _INLINE), 0, len(stored), stored


class References:
    """Where the blobs of a field are: in the segment, in the documents, or nowhere.

    Args:
        name: The field.
        segment: The segment.
    """

    def __init__(self, name: str, segment: ObjectId) -> None:
        self._name, self._segment = name, segment
        self._kinds = bytearray()
        self._offsets: list[int] = []
        self._lengths: list[int] = []
        self._inline: dict[int, bytes] = {}
        """What is in the documents, by row."""

    def __len__(self) -> int:
        return len(self._kinds)

    def add(self, places: Iterable[Place]) -> None:
        """Add blobs."""
        kinds, offsets, lengths, stored = zip(*places, strict=True)
        if any(kind > _MISSING for kind in set(kinds)):
            self._inline.update((i, data) for i, data in enumerate(stored, len(self)) if data is not None)
        self._kinds += bytes(kinds)
        self._offsets += offsets
        self._lengths += lengths

    def add_run(self, offsets: list[int], length: int) -> None:
        """Add blobs of one length that are in the segment as they are."""
        self._kinds += bytes((_RAW,)) * len(offsets)
        self._offsets += offsets
        self._lengths += repeat(length, len(offsets))

    def add_missing(self, n: int) -> None:
        """Add n samples that have no such blob."""
        self._kinds += bytes((_MISSING,)) * n
        self._offsets += repeat(0, n)
        self._lengths += repeat(0, n)

    def extend(self, other: References) -> None:
        """Add the blobs of others."""
        self._inline.update((len(self) + row, data) for row, data in other._inline.items())
        self._kinds += other._kinds
        self._offsets += other._offsets
        self._lengths += other._lengths

    def __getitem__(self, row: int) -> dict[str, Any] | None:
        """One reference; None if the sample has no such blob."""
        kind = self._kinds[row]
        if kind == _MISSING:
            return None
        if kind in (_INLINE, _INLINE_PACKED):
            return inline_reference(self._inline[row], kind == _INLINE_PACKED)
        found = {"k": self._segment, "o": self._offsets[row], "n": self._lengths[row]}
        return {**found, "z": True} if kind == _PACKED else found

    def present(self) -> npt.NDArray[np.bool_]:
        """Which samples have such a blob: bool[n]."""
        present: npt.NDArray[np.bool_] = np.frombuffer(bytes(self._kinds), np.uint8) != _MISSING
        return present

    def encode(self) -> list[Piece]:
        """The references as a field of documents, in BSON."""
        kinds = np.frombuffer(bytes(self._kinds), np.uint8)
        found = sorted(set(self._kinds))
        if len(found) == 1:
            return self._encode(found[0], range(len(self)))
        each = [(kind, np.flatnonzero(kinds == kind)) for kind in found if kind != _MISSING]
        return [pieces.scattered(len(self), [(rows, self._encode(kind, rows.tolist())) for kind, rows in each])]

    def _encode(self, kind: int, rows: Iterable[int]) -> list[Piece]:
        """The references of some rows, which are all of one kind."""
        chosen = list(rows)
        n = len(chosen)
        if kind == _MISSING:
            return []
        everything = n == len(self)
        lengths = self._lengths if everything else [self._lengths[row] for row in chosen]
        if kind in (_RAW, _PACKED):
            offsets = self._offsets if everything else [self._offsets[row] for row in chosen]
            inner: list[Piece] = [pieces.element("k", self._segment), *pieces.integers("o", offsets)]
            inner += pieces.integers("n", lengths)
        else:
            stored = [self._inline[row] for row in chosen]
            inner = [*pieces.binaries("d", stored), *pieces.integers("n", lengths)]
            inner += pieces.integers("x", list(map(checksum, stored)))
        if kind in (_PACKED, _INLINE_PACKED):
            inner.append(pieces.element("z", True))
        return pieces.document(self._name, inner, n)
