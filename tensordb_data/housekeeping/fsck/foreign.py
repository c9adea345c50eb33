"""Files of others that samples point into: each is there, and its ranges match their checksums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from bson import ObjectId

from tensordb_data.blobs.segments.foreign import SELF
from tensordb_data.blobs.segments.reference_format import ReferenceIndex
from tensordb_data.blobs.stores.base import Store
from tensordb_data.blobs.stores.foreign import ForeignFile, MissingFileError, Root, changed
from tensordb_data.common.chunks import runs_by_size
from tensordb_data.errors import StorageError
from tensordb_data.housekeeping.fsck.report import Finding
from tensordb_data.housekeeping.fsck.walk import ROUND, Walk


class ForeignCheck:
    """Of reference segments. Nothing is written to the files.

    A segment also has places of samples that were deleted, or have other files now. So a file that is missing or has
    changed is a finding only if a sample still points to what is gone.
    """

    def __init__(self, walk: Walk) -> None:
        self._walk, self._report = walk, walk.report
        self._unopened: set[str] = set()
        self._bad: dict[ObjectId, dict[int, Finding]] = {}
        """By segment and virtual offset, what is wrong with the file of a blob."""
        self._told: set[Finding] = set()

    def about(self, part: Mapping[str, Any]) -> Finding | None:
        """What is wrong with the file to which the reference of a sample leads."""
        segment = part.get("k")
        return self._bad.get(segment, {}).get(part["o"]) if isinstance(segment, ObjectId) and part["n"] else None

    def tell(self, finding: Finding) -> None:
        """Report what is wrong with a file, once."""
        if finding not in self._told:
            self._told.add(finding)
            self._report.find(finding.kind, finding.where, finding.what)

    def check(self, id: ObjectId, store: Store, key: str, index: ReferenceIndex) -> Iterator[int]:
        """Look at all blobs of a segment.

        Args:
            id: The segment.
            store: Its store.
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
                for blob, finding in self._file(root, index, number, numbers):
                    self._bad.setdefault(id, {})[int(index.offsets[blob])] = finding

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

    def _file(
        self, root: Root, index: ReferenceIndex, number: int, blobs: npt.NDArray[np.intp]
    ) -> Iterator[tuple[int, Finding]]:
        """The blobs of a file that are not what they were; all of them are named with the first one's words."""
        file = index.files.file(number)
        found: Finding | None = None
        if self._walk.quick and self._is_as_it_was(root, file):
            return
        lengths = index.lengths[blobs].tolist()
        for low, high in runs_by_size(lengths, ROUND):
            some = blobs[low:high]
            ranges = list(zip(index.at[some].tolist(), lengths[low:high], strict=True))
            try:
                state, parts = root.read(file, ranges)
            except StorageError as error:
                kind = "missing file" if isinstance(error, MissingFileError) else "changed file"
                found = found or Finding(kind, file.shown, str(error))
                yield from ((blob, found) for blob in some.tolist())
                continue
            self._report.bytes += sum(len(part) for part in parts if part is not None)
            expected = index.checksums[some].tolist()
            for blob, part, (at, length), checksum in zip(some.tolist(), parts, ranges, expected, strict=True):
                if part is None or xxhash.xxh3_64_intdigest(part) != checksum:
                    what = f"the {length:,} bytes at {at:,} are {'not there' if part is None else 'others'}"
                    found = found or Finding("changed file", file.shown, str(changed(file, state, what)))
                    yield blob, found

    def _is_as_it_was(self, root: Root, file: ForeignFile) -> bool:
        """Whether a file has the size and time that it had; whatever else it is, a closer look tells."""
        try:
            state = root.state(file.root, file.key)
        except StorageError:
            return False
        return (state.size, state.mtime_ns) == (file.size, file.mtime_ns)

    def _copied(self, store: Store, key: str, index: ReferenceIndex, numbers: npt.NDArray[np.intp]) -> Iterator[int]:
        if self._walk.quick:
            return
        lengths = index.lengths[numbers].tolist()
        for low, high in runs_by_size(lengths, ROUND):
            some = numbers[low:high]
            parts = store.get_ranges(key, index.at[some].tolist(), lengths[low:high])
            self._report.bytes += sum(lengths[low:high])
            for part, blob in zip(parts, some.tolist(), strict=True):
                if xxhash.xxh3_64_intdigest(part) != int(index.checksums[blob]):
                    yield int(index.offsets[blob])
