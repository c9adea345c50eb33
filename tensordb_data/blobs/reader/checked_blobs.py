"""Blobs on this machine that were checked before, to be gathered many times without a look at each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tensordb_data.blobs.reader.open_segment import Int64s
from tensordb_data.blobs.reader.segment_table import Bytes2D, Table
from tensordb_data.blobs.segments.references import BlobRefs

SMALL = 16 << 10
"""Blobs of so many bytes and more are worth a call each."""
_ADDRESSES = 1 << 20
"""References up to which the addresses of all are kept: 8 MB."""


class CheckedBlobs:
    """The blobs of some references: all of one size, in files of this machine that are mapped.

    Args:
        refs: The references.
        table: A table in which all of their segments are open.
        size: The bytes of each.
        check: Called with rows. It checks those that have not been checked yet, and says whether the table still holds.
    """

    def __init__(self, refs: BlobRefs, table: Table, size: int, check: Callable[[Int64s], bool]) -> None:
        self._refs, self._table, self._size, self._check = refs, table, size, check
        self._all = self._addresses(slice(None)) if len(refs) <= _ADDRESSES else None

    def find(self, rows: Int64s) -> Int64s | None:
        """Where the blobs of the references at `rows` are: for `gather`.

        Those that were not compared with their checksums yet are compared now.

        Returns:
            int64 [m]; None if the reader has let go of a segment, so that its blobs have to be looked for again.

        Raises:
            StorageError: A blob is damaged.
        """
        if not self._check(rows):
            return None
        return self._addresses(rows) if self._all is None else self._all[rows]

    def gather(self, addresses: Int64s) -> Bytes2D:
        """The blobs at some addresses, as a new array uint8 [m, size].

        Raises:
            CutShortError: A file does not have some of them any more.
        """
        return self._table.gather(addresses, self._size)

    def _addresses(self, rows: Int64s | slice) -> Int64s:
        found = self._table.bases[self._refs.segment[rows]]
        found += self._refs.offset[rows]
        return found


def can_be_checked(refs: BlobRefs, size: int) -> bool:
    """Whether the blobs of some references can be `CheckedBlobs`, once they were read."""
    alike = refs.length.strides == (0,) or bool((refs.length == size).all())
    return (
        len(refs) > 0 and 0 < size < SMALL and alike and int(refs.length[0]) == size
        and (refs.compressed is None or not np.any(refs.compressed))
    )  # fmt: skip
