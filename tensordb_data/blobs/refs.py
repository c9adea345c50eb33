"""References to blobs, as columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from bson import ObjectId

from tensordb_data.errors import StorageError


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

    def __len__(self) -> int:
        return len(self.offset)

    def take(self, index: npt.NDArray[np.integer[Any]] | npt.NDArray[np.bool_] | slice | Sequence[int]) -> BlobRefs:
        """The references at those positions, in that order (or in a mask or slice)."""
        if not isinstance(index, (np.ndarray, slice)):
            index = np.asarray(index, np.int64)
        return BlobRefs(
            self.segments,
            self.segment[index],
            self.offset[index],
            self.length[index],
            None if self.compressed is None else self.compressed[index],
        )

    @classmethod
    def from_docs(cls, docs: Sequence[Mapping[str, Any]]) -> BlobRefs:
        """The references in sample documents: `{k: segment, o: offset, n: stored length, z: true if zstd}` each.

        Raises:
            StorageError: a document is not such a reference.
        """
        numbers: dict[ObjectId, int] = {}
        try:
            segment = [numbers.setdefault(doc["k"], len(numbers)) for doc in docs]
            offset = np.array([doc["o"] for doc in docs], np.int64)
            length = np.array([doc["n"] for doc in docs], np.int64)
            compressed = np.array([doc.get("z", False) for doc in docs], np.bool_)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise StorageError(f"expected blob references of the form {{k, o, n}}, found others: {error!r}") from None
        return cls(
            tuple(numbers), np.array(segment, np.uint32), offset, length, compressed if compressed.any() else None
        )
