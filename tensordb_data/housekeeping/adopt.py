"""Adopt samples: copy their blobs out of files of others into ordinary segments, as a compaction moves blobs.

The segment is durable before a sample refers to it. Short transactions then replace each reference, if the sample still
has the old one. So it may be stopped at any time, and the next call goes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.blobs.segments.references import references_of
from tensordb_data.common.chunks import chunks
from tensordb_data.mongo.retry import read_all
from tensordb_data.samples.changes.entries import write_entry
from tensordb_data.samples.compact import Moved, Mover, cut, mark_unused
from tensordb_data.samples.mutations import Mutation
from tensordb_data.schema.schema import Schema

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery
    from tensordb_data.warehouse.context import Warehouse
    from tensordb_data.warehouse.documents.samples import DatasetDocument

_READ = 1000

Doc = dict[str, Any]


def adopt(selection: BoundQuery) -> Moved:
    """See `Selection.adopt`."""
    warehouse, report = selection.warehouse, Moved()
    segments = warehouse.index["segments"]
    refer: set[ObjectId] = {doc["_id"] for doc in segments.find({"roots": {"$exists": True}}, {"_id": 1})}
    if not refer:
        return report
    by_dataset: dict[str, list[ObjectId]] = {}
    for doc in selection.cursor({"_id": 1, "dataset": 1}):
        by_dataset.setdefault(doc["dataset"], []).append(doc["_id"])
    for dataset, ids in by_dataset.items():
        _adopt_in(warehouse, dataset, ids, refer, report)
    return report


def _adopt_in(warehouse: Warehouse, dataset: str, ids: list[ObjectId], refer: set[ObjectId], report: Moved) -> None:
    about: DatasetDocument | None = warehouse.index["datasets"].find_one({"_id": warehouse.datasets.id(dataset)})
    if about is None:
        return
    runs = cut(_referring(warehouse, dataset, ids, refer))
    first = next(runs, None)
    if first is None:
        return
    left: set[ObjectId] = set()
    before = report.samples
    # A compaction, to readers: values stay, and the next pass of a stream reads the new places.
    with Mutation(warehouse, "compact", [dataset], alone=False, stamps=True) as mutation:
        mover = Mover(warehouse, dataset, Schema.from_doc(about["schema"] or {}), report, mutation, adopts=True)
        for docs in itertools.chain([first], runs):
            left.update(part["k"] for doc in docs for part in references_of(doc).values() if part.get("k") in refer)
            mover.move(docs, list(refer))
    if moved := report.samples - before:
        write_entry(warehouse, dataset, "compact", number=mutation.numbers.get(dataset), count=moved)
    mark_unused(warehouse, dataset, [*left, *mover.unused], report)


def _referring(warehouse: Warehouse, dataset: str, ids: list[ObjectId], refer: set[ObjectId]) -> Iterator[Doc]:
    """Those of some samples that have blobs in files of others."""
    for some in chunks(ids, _READ):
        here = {"_id": {"$in": some}, "_tdb.p": warehouse.project, "dataset": dataset}
        for doc in read_all(warehouse.index["data"].find(here)):
            if any(part.get("k") in refer for part in references_of(doc).values()):
                yield doc
