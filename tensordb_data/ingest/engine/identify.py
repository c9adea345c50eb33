"""Find out which sample each row is: by its key, its place or its content."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from bson import ObjectId

from tensordb_data.ingest.engine.apply import some_rows
from tensordb_data.ingest.engine.seen import Seen
from tensordb_data.warehouse.identity import Identities

if TYPE_CHECKING:
    from tensordb_data.ingest.engine.prepare import Prepared
    from tensordb_data.ingest.options import Rows
    from tensordb_data.ingest.report import Report

Stored = Callable[[Sequence[ObjectId]], Mapping[ObjectId, Mapping[str, Any]]]
"""Gives the samples of some identities, as far as they exist."""


class Identifier:
    """The identities of the rows of one ingest.

    Args:
        identities: Those of the dataset.
        rows: What identifies a row.
        source_id: The id of the source.
        root: The folder or URL below which the places of rows are.
        report: Gets rows that are there twice.
    """

    def __init__(self, identities: Identities, rows: Rows, source_id: str, root: str, report: Report) -> None:
        self.identities, self._rows, self._source_id, self._report = identities, rows, source_id, report
        self._root = root.encode(errors="surrogateescape")
        self._known = Seen()
        self._next: dict[bytes, int] = {}
        """For contents that were seen more than once, the number of the next such row."""
        self.kept: Collection[int] = ()
        """The files of the source that are in and are not read this time, by `file_number`."""

    def identify(self, rows: Prepared, stored: Stored) -> tuple[Prepared, list[ObjectId]]:
        """The identities of some rows. Rows with the key of an earlier one are noted, and left out."""
        if rows.keys is None:
            return rows, self._by_content(rows.hashes, stored)
        if self._rows.key is not None:
            ids = [self.identities.of_key(key, self._rows.source_id or "") for key in rows.keys]
        else:
            ids = [self.of_place(key) for key in rows.keys]
        again = self._known.add([id.binary for id in ids])
        if not again.any():
            return rows, ids
        what = f"key {', '.join(self._rows.key)}" if self._rows.key else "place"
        for row in np.flatnonzero(again).tolist():
            self._report.fail(rows.where[row], f"another row of this source has the same {what}, and came first")
        good = np.flatnonzero(~again).tolist()
        return some_rows(rows, good), [ids[row] for row in good]

    def of_place(self, key: bytes) -> ObjectId:
        """The identity of what is at a place below the root of the source, or below the name that the user gives."""
        if self._rows.source_id is not None:
            return self.identities.of_place(self._rows.source_id, key)
        return self.identities.of_place("", self._root + b"/" + key)

    def _by_content(self, digests: Sequence[bytes], stored: Stored) -> list[ObjectId]:
        """Number equal rows. The numbers of those in files that are not read this time are taken."""
        numbers: list[int] = []
        for digest, was_there in zip(digests, self._known.add(digests).tolist(), strict=True):
            number = self._next.get(digest, 1) if was_there else 0
            if was_there:
                self._next[digest] = number + 1
            numbers.append(number)
        ids = [self.identities.of_content(*pair) for pair in zip(digests, numbers, strict=True)]
        rest = list(range(len(ids))) if self.kept else []
        while rest:
            found = stored([ids[row] for row in rest])
            rest = [row for row in rest if self._is_kept(found.get(ids[row]))]
            for row in rest:
                digest = digests[row]
                numbers[row] = max(numbers[row] + 1, self._next.get(digest, 1))
                self._next[digest] = numbers[row] + 1
                ids[row] = self.identities.of_content(digest, numbers[row])
        return ids

    def _is_kept(self, doc: Mapping[str, Any] | None) -> bool:
        """Whether a sample is of a file that is not read this time."""
        origin = {} if doc is None else doc["_tdb"].get("src", {})
        return origin.get("s") == self._source_id and origin.get("f") in self.kept


def file_number(name: str) -> int:
    """The number of a file in `_tdb.src.f`; never that of a missing one."""
    return (xxhash.xxh3_64_intdigest(name.encode(errors="surrogateescape")) - 2**63) or 1
