"""Samples whose rows are not in their source any more. They are marked, and counted in each ingest, or deleted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.common.chunks import batched, chunks
from tensordb_data.ingest.engine.seen import Seen
from tensordb_data.query.query import Query
from tensordb_data.samples.delete import delete_samples
from tensordb_data.warehouse.bound_query import BoundQuery

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

GONE = 0
"""What `_tdb.src.f` is of a sample whose row is not there any more."""
_CHUNK = 5000


class Missing:
    """The missing samples of one source.

    Args:
        warehouse: The warehouse.
        dataset: The dataset.
        source: The id of the source.
        seen: The `_id`s of the samples whose rows were seen in this ingest.
        dry_run: Whether to mark nothing.
    """

    def __init__(self, warehouse: Warehouse, dataset: str, source: str, seen: Seen, *, dry_run: bool) -> None:
        self._warehouse, self._seen, self._dry = warehouse, seen, dry_run
        self._of = {"_tdb.p": warehouse.project, "dataset": dataset, "_tdb.src.s": source}
        self._data = warehouse.index["data"]
        self.found = 0
        """How many have been found in this ingest."""

    def of_files(self, numbers: Sequence[int]) -> None:
        """Mark the samples of these files whose rows were not seen."""
        for some in chunks(numbers, _CHUNK):
            self._mark({**self._of, "_tdb.src.f": {"$in": list(some)}})

    def of_ids(self, ids: Sequence[ObjectId]) -> None:
        """Mark the samples of these identities, each of which was a file, unless they were seen."""
        for some in chunks(ids, _CHUNK):
            here = {"$or": [{"_id": {"$in": list(some)}}, {"_tdb.src.a": {"$in": list(some)}}]}
            self._mark({**self._of, **here, "_tdb.src.f": {"$ne": GONE}})

    def _mark(self, where: dict[str, Any]) -> None:
        found = (doc["_id"] for doc in self._data.find(where, {"_id": 1}))
        for ids in batched(found, _CHUNK):
            known = self._seen.has([id.binary for id in ids]).tolist()
            gone = [id for id, seen in zip(ids, known, strict=True) if not seen]
            self.found += len(gone)
            if gone and not self._dry:
                self._data.update_many({"_id": {"$in": gone}, **self._of}, {"$set": {"_tdb.src.f": GONE}})

    def count(self) -> int:
        """How many samples of the source are missing."""
        marked: int = self._data.count_documents({**self._of, "_tdb.src.f": GONE})
        return marked + (self.found if self._dry else 0)

    def delete(self) -> int:
        """Delete them. Returns how many were deleted."""
        return sum(delete_samples(BoundQuery(self._warehouse, Query("data", {"_id": {"$in": ids}})))
                   for ids in self._ids())  # fmt: skip

    def _ids(self) -> Iterator[list[ObjectId]]:
        gone = {**self._of, "_tdb.src.f": GONE}
        while ids := [doc["_id"] for doc in self._data.find(gone, {"_id": 1}).limit(_CHUNK)]:
            yield ids
