"""Compact a dataset: move blobs out of documents, and out of segments that are mostly deleted, into new segments.

Blobs are copied into a segment, which is durable before any sample refers to it. Short transactions then replace the
references, each only where the sample still has the old one, and count themselves in the segment's `v`. A segment that
nothing refers to any more becomes `dying`; its object stays where it is. Whatever is killed in between, each sample
refers to bytes that are there, and the next compaction goes on.

A compaction moves bytes and changes no value, so that a plan that was read meanwhile is as good as any other, and plans
do not wait for it. It announces itself as a mutation, by whose number the samples are found that were moved since.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.blobs.segments.foreign import ForeignBlob
from tensordb_data.blobs.segments.inline import check_inline, is_inline
from tensordb_data.blobs.segments.reference_format import ReferenceBuilder
from tensordb_data.blobs.segments.references import BlobRefs
from tensordb_data.common.chunks import chunks
from tensordb_data.common.html import Report
from tensordb_data.errors import CorruptBlobError, NotFoundError
from tensordb_data.frozen.frozen_set import segments_in_sets
from tensordb_data.samples import write_batch
from tensordb_data.samples.changes.each import stamped
from tensordb_data.samples.changes.entries import write_entry
from tensordb_data.samples.commit import back_off
from tensordb_data.samples.encode.segment import drop_segment, put_segment
from tensordb_data.samples.mutations import Mutation
from tensordb_data.schema.schema import Schema
from tensordb_data.warehouse.index import Update

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse
    from tensordb_data.warehouse.documents.blobs import SegmentDocument
    from tensordb_data.warehouse.documents.samples import DatasetDocument

_CHUNK = 500
"""Samples of one transaction: few, since their edits by others wait for it."""
_DEAD = 0.5
"""Share of dead bytes above which a segment is rewritten."""
_READ = 1000

Doc = dict[str, Any]


@dataclass
class Moved(Report):
    """What was done with blobs that have moved into new segments."""

    samples: int = 0
    """Samples whose blobs have moved."""
    bytes: int = 0
    """Bytes of those blobs, as stored."""
    segments: int = 0
    """Segments written."""
    dying: int = 0
    """Segments that no sample refers to any more, and whose objects can be removed."""
    dying_bytes: int = 0
    """Bytes of those objects."""
    damaged: list[str] = field(default_factory=list)
    """Samples that were not moved, because a blob does not match its checksum, and why."""


@dataclass
class Compacted(Moved):
    """What a compaction did."""

    dataset: str = ""


Progress = Callable[[int, int, Compacted], None]
"""Called with sequence numbers done, of how many, and the report so far."""


class _Died(Exception):
    """Another compaction has found the new segment mostly empty, and has moved its samples on; or a gc removed it."""


def compact(warehouse: Warehouse, dataset: str, progress: Progress | None = None) -> Compacted:
    """See `Data.compact`."""
    index = warehouse.index
    about: DatasetDocument | None = index["datasets"].find_one({"_id": warehouse.datasets.id(dataset)})
    if about is None:
        raise NotFoundError(f"there is no dataset {dataset!r} in project {warehouse.project!r}")
    schema = Schema.from_doc(about["schema"] or {})
    fields = [name for name, field in schema.items() if field.is_blob]
    report, last = Compacted(dataset=dataset), int(about["seq"])
    dead = _mostly_dead(warehouse, dataset)
    # Samples up to there had no inline blobs when an earlier compaction ended, and never get any.
    start = 0 if dead else int(about.get("compacted", 0))
    runs = cut(_found(warehouse, dataset, fields, dead, start, last), staying(warehouse, dead))
    first = next(runs, None)
    whole, unused = True, list(dead)
    if first is not None:
        with Mutation(warehouse, "compact", [dataset], alone=False, stamps=True) as mutation:
            mover = Mover(warehouse, dataset, schema, report, mutation)
            for docs in itertools.chain([first], runs):
                whole &= mover.move(docs, dead)
                if progress is not None:
                    progress(docs[-1]["_tdb"]["s"] - start, last - start, report)
        unused += mover.unused
        if report.samples:
            write_entry(
                warehouse, dataset, "compact", number=mutation.numbers.get(dataset), count=report.samples
            )  # fmt: skip
    if whole and last > about.get("compacted", 0):
        same = {"_id": about["_id"], "created": about["created"]}
        index["datasets"].update_one(same, {"$max": {"compacted": last}})
    mark_unused(warehouse, dataset, unused, report)
    if progress is not None:
        progress(last - start, last - start, report)
    return report


def references(warehouse: Warehouse, dataset: str, ids: Sequence[ObjectId] | None = None) -> dict[ObjectId, int]:
    """Bytes of the blobs in each segment to which samples of a dataset refer; or in some segments, samples of any."""
    only = {"$exists": True} if ids is None else {"$in": list(ids)}
    of_dataset = {"_tdb.p": warehouse.project, "dataset": dataset}
    stages: list[dict[str, Any]] = [
        {"$match": of_dataset if ids is None else {"_tdb.b": {"$type": "object"}}},
        {"$project": {"r": {"$objectToArray": "$_tdb.b"}}},
        {"$unwind": "$r"},
        {"$match": {"r.v.k": only}},
        {"$group": {"_id": "$r.v.k", "bytes": {"$sum": "$r.v.n"}}},
    ]
    return {doc["_id"]: int(doc["bytes"]) for doc in warehouse.index["data"].aggregate(stages, allowDiskUse=True)}


def _mostly_dead(warehouse: Warehouse, dataset: str) -> list[ObjectId]:
    """Live segments of which too little is referred to."""
    # In this order: what a commit refers to is visible once its segment is live.
    of_dataset = {"p": warehouse.project, "dataset": dataset, "state": "live"}
    live: list[SegmentDocument] = list(warehouse.index["segments"].find(of_dataset))
    used = references(warehouse, dataset) if live else {}
    return [doc["_id"] for doc in live if _is_dead(used.get(doc["_id"]), doc.get("blobs"))]


def _is_dead(used: int | None, blobs: int | None) -> bool:
    return used is None or (blobs is not None and used < (1 - _DEAD) * blobs)


def _found(
    warehouse: Warehouse, dataset: str, fields: Sequence[str], dead: Sequence[ObjectId], start: int, last: int
) -> Iterator[Doc]:
    """The samples in (start, last] with blobs to be moved, in order."""
    where: list[Doc] = [{f"_tdb.b.{name}.d": {"$exists": True}} for name in fields]
    if dead:
        where += [{f"_tdb.b.{name}.k": {"$in": list(dead)}} for name in fields]
    while where and start < last:
        filter = {"_tdb.p": warehouse.project, "dataset": dataset, "_tdb.s": {"$gt": start, "$lte": last}, "$or": where}
        # Anew for each page: writing a segment may take longer than a server keeps an idle cursor.
        docs = list(warehouse.index["data"].find(filter).sort("_tdb.s", 1).limit(_READ))
        yield from docs
        if len(docs) < _READ:
            return
        start = docs[-1]["_tdb"]["s"]


def staying(warehouse: Warehouse, ids: Sequence[ObjectId]) -> set[ObjectId]:
    """Those of some segments whose blobs are in files of others."""
    return {
        doc["_id"] for doc in warehouse.index["segments"].find({"_id": {"$in": list(ids)}, "roots": {"$exists": True}})
    }


def cut(docs: Iterable[Doc], light: Container[ObjectId] = ()) -> Iterator[list[Doc]]:
    """Runs of samples whose blobs make one segment.

    Args:
        docs: The samples.
        light: Segments of whose blobs only the places are copied.
    """
    run: list[Doc] = []
    size = 0
    for doc in docs:
        run.append(doc)
        size += sum(part["n"] for part in doc["_tdb"]["b"].values() if part.get("k") not in light)
        if size >= write_batch.SEGMENT_BYTES or len(run) >= write_batch.BATCH_SAMPLES:
            yield run
            run, size = [], 0
    if run:
        yield run


class Mover:
    """Moves blobs of samples into segments, one a call.

    Args:
        warehouse: The warehouse.
        dataset: The dataset.
        schema: Its schema.
        report: Counts what was done.
        mutation: Of which each transaction is a step.
        adopts: Whether blobs in files of others are copied. Otherwise the new segments say where they are.
    """

    def __init__(
        self,
        warehouse: Warehouse,
        dataset: str,
        schema: Schema,
        report: Moved,
        mutation: Mutation,
        *,
        adopts: bool = False,
    ) -> None:
        self._adopts = adopts
        self._warehouse, self._dataset, self._schema, self._report = warehouse, dataset, schema.to_doc(), report
        self._mutation = mutation
        self.unused: list[ObjectId] = []
        """Segments that were written in vain, because another compaction was faster."""

    def move(self, docs: Sequence[Doc], dead: Sequence[ObjectId]) -> bool:
        """Move the blobs of some samples into one segment.

        Returns:
            Whether nothing is left to be moved: each blob was moved, by this process or another, or is damaged.
        """
        segment, builder = ObjectId(), ReferenceBuilder(self._warehouse.project, self._dataset, self._schema)
        updates, samples = [], []
        for doc, parts in self._readable(docs, set(dead)):
            new = {name: _copied(builder, segment, part, stored) for name, (part, stored) in parts.items()}
            updates.append(_update(doc["_id"], {name: part for name, (part, _) in parts.items()}, new))
            samples.append({**doc, "_tdb": {**doc["_tdb"], "b": {**doc["_tdb"]["b"], **new}}})
        if not updates:
            return True
        put_segment(self._warehouse, self._dataset, segment, builder, samples, len(samples))
        self._report.segments += 1
        moved, whole = 0, True
        try:
            for some in chunks(updates, _CHUNK):
                moved += self._mutation.step(some, partial(self._replace, segment))
        except _Died:
            whole = False
            if not moved:  # a gc took this writer for dead, perhaps before the object was there
                drop_segment(self._warehouse, segment)
        self._report.samples += moved
        self._report.bytes += sum(part["n"] for doc in samples for part in _within(doc, segment)) if moved else 0
        if not moved and whole:
            self.unused.append(segment)
        return whole

    def _replace(self, segment: ObjectId, updates: Sequence[Update], session: Any) -> int:
        """Within a step, put new references in the place of the old ones."""
        # A write, not only a look: whoever declares the segment dying at this time conflicts with it.
        done = self._warehouse.index["segments"].update_one(
            {"_id": segment, "state": {"$in": ["writing", "live"]}},
            {"$set": {"state": "live"}, "$inc": {"v": 1}},
            session=session,
        )
        if not done.matched_count:
            raise _Died
        number = self._mutation.numbers.get(self._dataset)
        if self._mutation.stamps and number is not None:
            updates = [stamped(update, number) for update in updates]
        return self._warehouse.index.update_each("data", updates, session)

    def _readable(self, docs: Sequence[Doc], dead: set[ObjectId]) -> Iterator[tuple[Doc, dict[str, tuple[Doc, Any]]]]:
        """The samples with their blobs to be moved: reference and stored bytes, by field."""
        movable = [
            {name: part for name, part in doc["_tdb"]["b"].items() if is_inline(part) or part["k"] in dead}
            for doc in docs
        ]
        remote = [part for parts in movable for part in parts.values() if not is_inline(part)]
        stored = iter(self._in_segments(remote))
        for doc, parts in zip(docs, movable, strict=True):
            found = {name: (part, part["d"] if is_inline(part) else next(stored)) for name, part in parts.items()}
            try:
                for part, data in found.values():
                    if isinstance(data, CorruptBlobError):
                        raise data
                    if is_inline(part):
                        check_inline(data, part.get("x"))
            except CorruptBlobError as error:
                self._report.damaged.append(f"sample {doc['_id']}: {error}")
                continue
            yield doc, found

    def _in_segments(self, parts: Sequence[Doc]) -> list[Any]:
        """The stored bytes of blobs in segments, or where they stay; in place of a damaged one its error."""
        stay: list[ForeignBlob | None] = [None] * len(parts)
        if parts and not self._adopts and staying(self._warehouse, list({part["k"] for part in parts})):
            stay = self._warehouse.blobs.reader.foreign(BlobRefs.from_docs(parts))
        read = iter(self._stored([part for part, place in zip(parts, stay, strict=True) if place is None]))
        return [next(read) if place is None else place for place in stay]

    def _stored(self, parts: Sequence[Doc]) -> list[Any]:
        """The stored bytes of blobs in segments; in place of a damaged one its error."""
        found: list[Any] = []
        while len(found) < len(parts):
            rest = parts[len(found) :]
            try:
                found += self._warehouse.blobs.reader._stored(BlobRefs.from_docs(rest))
            except CorruptBlobError as error:
                if error.row is None:
                    raise
                good = rest[: error.row]
                found += self._stored(good) if good else []
                found.append(error)
        return found


def _copied(builder: ReferenceBuilder, segment: ObjectId, part: Doc, stored: Any) -> Doc:
    compressed = bool(part.get("z"))
    offset = builder.add(stored)[0] if isinstance(stored, ForeignBlob) else builder.copy(stored, compressed)
    reference: Doc = {"k": segment, "o": offset, "n": len(stored)}
    kept: Doc = {key: part[key] for key in ("m", "was") if key in part}  # of an update that has replaced the blob
    return {**reference, **kept, **({"z": True} if compressed else {})}


def _update(id: ObjectId, old: Mapping[str, Doc], new: Mapping[str, Doc]) -> Update:
    """Replaces references, if they still are the old ones."""
    where: Doc = {"_id": id}
    for name, part in old.items():
        kept = ("x",) if is_inline(part) else ("k", "o")
        where.update((f"_tdb.b.{name}.{key}", part[key]) for key in kept)
    return where, {"$set": {f"_tdb.b.{name}": part for name, part in new.items()}}


def _within(doc: Doc, segment: ObjectId) -> Iterator[Doc]:
    return (part for part in doc["_tdb"]["b"].values() if part.get("k") == segment)


def mark_unused(warehouse: Warehouse, dataset: str, ids: Sequence[ObjectId], report: Moved) -> None:
    """Mark those of some segments as dying to which no sample and no frozen set refers."""
    segments = warehouse.index["segments"]
    # `v` is read first: whoever refers to a segment after that has incremented it.
    found: list[SegmentDocument] = list(segments.find({"_id": {"$in": list(ids)}, "state": "live"}))
    used = references(warehouse, dataset, ids) if found else {}
    held = segments_in_sets(warehouse, ids) if found else set()
    unused = [doc for doc in found if doc["_id"] not in used and doc["_id"] not in held]
    attempts = itertools.count()

    def body(session: Any) -> list[SegmentDocument]:
        back_off(next(attempts))
        done: list[SegmentDocument] = []
        for doc in unused:
            same = {"_id": doc["_id"], "state": "live", "v": doc.get("v")}
            dying = {"$set": {"state": "dying"}, "$currentDate": {"dying": True}}
            if segments.update_one(same, dying, session=session).modified_count:
                done.append(doc)
        if done:  # no plan of the data from here on refers to them
            warehouse.datasets.mark_changed([dataset], stamped=True, session=session)
        return done

    marked = warehouse.index.transaction(body) if unused else []
    report.dying += len(marked)
    report.dying_bytes += sum(doc["bytes"] for doc in marked)
