"""Files of others that samples point into: each is there, and its ranges match their checksums."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import xxhash

from tensordb_data.blobs.segments.foreign import SELF
from tensordb_data.blobs.segments.reference_format import ReferenceIndex
from tensordb_data.blobs.stores.base import Store
from tensordb_data.blobs.stores.foreign import MissingFileError, Root, changed
from tensordb_data.common.chunks import runs_by_size
from tensordb_data.errors import StorageError
from tensordb_data.housekeeping.fsck.walk import ROUND, Walk


class ForeignCheck:
    """Of reference segments. Nothing is written to the files."""

    def __init__(self, walk: Walk) -> None:
        self._walk, self._report = walk, walk.report
        self._unopened: set[str] = set()

    def check(self, store: Store, key: str, index: ReferenceIndex) -> Iterator[int]:
        """Look at all blobs of a segment. What is wrong with a file is one finding, however many blobs it has.

        Args:
            store: The store of the segment.
            key: Its key.
            index: What it says of its blobs.

        Yields:
            The virtual offsets of damaged blobs in the segment's own object.
        """
        order = np.argsort(index.file, kind="stable")
        cuts = np.flatnonzero(np.diff(index.file[order])) + 1
        for numbers in np.split(order, cuts) if len(order) else ():
            number = int(index.file[numbers[0]])
            if number == SELF:
                yield from self._copied(store, key, index, numbers)
            elif (root := self._root(index.roots[int(index.files.root[number])])) is not None:
                self._file(root, index, number, numbers)

    def _root(self, name: str) -> Root | None:
        try:
            root = self._walk.warehouse.blobs.root(name)
            if root.path.is_dir():
                return root
            why = f"this machine has no folder {root.path}"
        except StorageError as error:
            why = str(error)
        if name not in self._unopened:
            self._unopened.add(name)
            self._report.find("unopened root", f"root {name}", why)
        return None

    def _file(self, root: Root, index: ReferenceIndex, number: int, blobs: npt.NDArray[np.intp]) -> None:
        file = index.files.file(number)
        lengths = index.lengths[blobs].tolist()
        for low, high in runs_by_size(lengths, ROUND):
            some = blobs[low:high]
            ranges = list(zip(index.at[some].tolist(), lengths[low:high], strict=True))
            try:
                state, parts = root.read(file, ranges)
            except MissingFileError as error:
                self._report.find("missing file", file.shown, f"{error} ({len(blobs):,} blobs)")
                return
            except StorageError as error:
                self._report.find("changed file", file.shown, f"{error} ({len(blobs):,} blobs)")
                return
            self._report.bytes += sum(len(part) for part in parts if part is not None)
            for part, (at, length), expected in zip(parts, ranges, index.checksums[some].tolist(), strict=True):
                if part is None or xxhash.xxh3_64_intdigest(part) != expected:
                    what = f"the {length:,} bytes at {at:,} are {'not there' if part is None else 'others'}"
                    self._report.find("changed file", file.shown, str(changed(file, state, what)))
                    return

    def _copied(self, store: Store, key: str, index: ReferenceIndex, numbers: npt.NDArray[np.intp]) -> Iterator[int]:
        lengths = index.lengths[numbers].tolist()
        for low, high in runs_by_size(lengths, ROUND):
            some = numbers[low:high]
            parts = store.get_ranges(key, index.at[some].tolist(), lengths[low:high])
            self._report.bytes += sum(lengths[low:high])
            for part, blob in zip(parts, some.tolist(), strict=True):
                if xxhash.xxh3_64_intdigest(part) != int(index.checksums[blob]):
                    yield int(index.offsets[blob])
