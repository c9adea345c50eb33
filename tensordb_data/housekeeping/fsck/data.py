"""Segments and samples: every reference leads to bytes, and all bytes match their checksums."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from bson import ObjectId
from numpy.typing import NDArray

from tensordb_data.blobs.segments.format import SegmentIndex, SegmentPlace
from tensordb_data.blobs.segments.inline import check_inline, is_inline
from tensordb_data.blobs.segments.read import read_segment
from tensordb_data.blobs.segments.reference_format import ReferenceIndex
from tensordb_data.blobs.segments.references import is_reference, references_of
from tensordb_data.blobs.stores.base import Store
from tensordb_data.common.chunks import runs_by_size
from tensordb_data.errors import CorruptBlobError, StorageError
from tensordb_data.housekeeping.documents import Schemas, faults, project_of
from tensordb_data.housekeeping.fsck.foreign import ForeignCheck
from tensordb_data.housekeeping.fsck.walk import ROUND, Doc, Walk

Numbered = tuple[str, str, Any]
"""The project and the dataset of a sample, and its sequence number."""

_OPEN = 64  # segments whose places are kept while samples are looked at


@dataclass
class _Segment:
    """The places in a segment, and which of its blobs are damaged."""

    index: SegmentIndex | None
    damaged: frozenset[int]
    unopened: bool = False
    home: tuple[str, str] | None = None
    """The project and the dataset for which it was written."""

    def complaint(self, offset: int, nbytes: int) -> tuple[str, str] | None:
        """Kind and words for a reference that is wrong."""
        if self.unopened:  # its root is a finding
            return None
        if self.index is None:
            return "dangling reference", "its segment is missing or damaged"
        at = int(np.searchsorted(self.index.offsets, offset, side="left"))
        while at < len(self.index.offsets) and self.index.offsets[at] == offset:  # empty blobs share their offset
            if self.index.lengths[at] == nbytes:
                damaged = offset in self.damaged and nbytes > 0
                return ("damaged blob", "the stored bytes do not match their checksum") if damaged else None
            at += 1
        return "dangling reference", f"its segment has no blob of {nbytes} bytes at {offset}"


class DataCheck:
    """Of what `db.data` has."""

    def __init__(self, walk: Walk) -> None:
        self._walk, self._report = walk, walk.report
        self._foreign = ForeignCheck(walk)
        self._damaged: dict[ObjectId, frozenset[int]] = {}
        self._bad: set[ObjectId] = set()
        self._datasets: Counter[tuple[str, str]] = Counter()
        self._strangers: Counter[tuple[tuple[str, str], tuple[str, str]]] = Counter()
        self._open: OrderedDict[ObjectId, _Segment] = OrderedDict()

    def segments(self) -> None:
        """Every segment is there, describes itself, and its blobs match their checksums."""
        for doc in self._walk.sound("segments", {"state": {"$in": ["live", "dying"]}}):
            self._report.segments += 1
            store = self._walk.store(doc)
            if store is None:
                continue
            with self._walk.document("segments", doc, {"state": doc["state"]}, self._bad.add):
                place = SegmentPlace.from_doc(doc)
                index, _ = read_segment(store, place.key)
                place.check(store.size(place.key), index)
                if isinstance(index, ReferenceIndex):
                    damaged = frozenset(self._foreign.check(doc["_id"], store, place.key, index))
                else:
                    damaged = frozenset(self._damaged_blobs(store, place.key, index))
                if damaged:
                    self._damaged[doc["_id"]] = damaged

    def _damaged_blobs(self, store: Store, key: str, index: SegmentIndex) -> Iterator[int]:
        if self._walk.quick:
            return
        for low, high in runs_by_size(index.lengths.tolist(), ROUND):
            offsets, lengths = index.offsets[low:high].tolist(), index.lengths[low:high].tolist()
            parts = store.get_ranges(key, offsets, lengths)
            self._report.bytes += sum(lengths)
            for part, expected, offset in zip(parts, index.checksums[low:high].tolist(), offsets, strict=True):
                if xxhash.xxh3_64_intdigest(part) != expected:
                    yield offset

    def samples(self) -> None:
        """Every blob of every sample lies in a segment that has it, or is whole in the document."""
        order = [("_tdb.p", 1), ("dataset", 1), ("_tdb.s", 1)]  # segment by segment, mostly
        schemas, before = Schemas(self._walk.mongo["datasets"]), None
        for doc in self._walk.all("data", {}, None, order):
            self._report.samples += 1
            project, dataset = project_of(doc), doc.get("dataset")
            where = f"sample {doc['_id']} of dataset {dataset!r} of {project!r}"
            scope = (project, dataset) if isinstance(project, str) and isinstance(dataset, str) else None
            if scope is not None:
                self._datasets[scope] += 1
                before = self._numbered(doc, scope, before, where)
            for field_name, what in faults(doc, schemas.of(doc)):
                self._report.find(
                    "damaged document", where if field_name is None else f"{where}, field {field_name!r}", what
                )
            for name, part in references_of(doc).items():
                if is_reference(part):
                    with self._walk.document("data", doc, {f"_tdb.b.{name}": part}):
                        self._blob(doc, f"{where}, field {name!r}", name, part)
                        if scope is not None and not is_inline(part):
                            home = self._segment(part["k"]).home
                            self._strangers[scope, home or scope] += 1
        self._warn_of_strangers()

    def _numbered(self, doc: Doc, scope: tuple[str, str], before: Numbered | None, where: str) -> Numbered | None:
        """Compare a sample with the one before it in the order of numbers.

        Returns:
            What the next one is compared with.
        """
        found = (*scope, doc["_tdb"].get("s"))
        if found == before and isinstance(found[2], int):
            same = {"_tdb.p": scope[0], "dataset": scope[1], "_tdb.s": found[2]}
            if self._walk.mongo["data"].count_documents(same, limit=2) == 2:
                what = f"expected a sequence number of its own, found {found[2]}, which another sample has too"
                self._report.find("damaged document", where, what)
        return found

    def _blob(self, doc: Doc, where: str, name: str, part: Doc) -> None:
        finding = self._foreign.about(part)
        complaint = self._complaint(part) if finding is None else (finding.kind, finding.what)
        if complaint is not None and self._walk.mongo["data"].find_one(
            {"_id": doc["_id"], f"_tdb.b.{name}": part}, {"_id": 1}
        ):
            if finding is not None:
                self._foreign.tell(finding)
            else:
                self._report.find(complaint[0], where, complaint[1])

    def _warn_of_strangers(self) -> None:
        known = {(doc["_id"]["p"], doc["_id"]["d"]) for doc in self._walk.mongo["datasets"].find({}, {"_id": 1})}
        for (project, dataset), count in self._datasets.items():
            if (project, dataset) not in known:
                self._report.warnings.append(
                    f"{count:,} samples are in dataset {dataset!r} of project {project!r}, which has no schema: "
                    "another tool has put them there, and they cannot be streamed"
                )
        for (scope, home), count in self._strangers.items():
            if home == scope:
                continue
            self._report.warnings.append(
                f"{count:,} blobs of samples in dataset {scope[1]!r} of project {scope[0]!r} are in segments of "
                f"dataset {home[1]!r} of {home[0]!r}: another tool has moved the samples, and a rebuild would put "
                "them back; use db.data.rename for that"
            )

    def _complaint(self, part: Doc) -> tuple[str, str] | None:
        if not is_inline(part):
            return self._segment(part["k"]).complaint(part["o"], part["n"])
        try:
            self._report.bytes += part["n"]
            check_inline(part["d"], part.get("x"))
        except CorruptBlobError as error:
            return "damaged blob", str(error)
        return None

    def place_fault(
        self, id: ObjectId, offsets: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> tuple[str, str] | None:
        """Kind and words for the first of some places in a segment that is wrong; None if all are right."""
        segment = self._segment(id)
        if segment.index is not None and not segment.damaged:
            known, sizes = np.asarray(segment.index.offsets), np.asarray(segment.index.lengths)
            at = np.minimum(np.searchsorted(known, offsets, side="right") - 1, len(known) - 1)
            right = (at >= 0) & (known[at] == offsets) & (sizes[at] == lengths) if len(known) else np.zeros(0, np.bool_)
            offsets, lengths = (offsets[~right], lengths[~right]) if len(known) else (offsets, lengths)
        places = zip(offsets.tolist(), lengths.tolist(), strict=True)
        return next((found for place in places if (found := segment.complaint(*place)) is not None), None)

    def _segment(self, id: ObjectId) -> _Segment:
        found = self._open.get(id)
        if found is None:
            found = self._open[id] = self._read(id)
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)
        return found

    def _read(self, id: ObjectId) -> _Segment:
        doc = self._walk.mongo["segments"].find_one({"_id": id, "state": {"$in": ["live", "dying"]}})
        if doc is None or id in self._bad:
            return _Segment(None, frozenset())
        store = self._walk.store(doc)
        if store is None:
            return _Segment(None, frozenset(), unopened=True)
        try:
            place = SegmentPlace.from_doc(doc)
            index, _ = read_segment(store, place.key)
        except StorageError:
            return _Segment(None, frozenset())
        return _Segment(index, self._damaged.get(id, frozenset()), home=(doc["p"], doc["dataset"]))
