"""fsck: check that every reference leads to bytes, and that all bytes match their checksums; report what does not.

It changes nothing, and may run beside writers and gc. It checks a finding again before it reports it, since a gc may
have removed the object in the meantime. It reads all bytes, in pieces, in bounded memory.
"""

from __future__ import annotations

import contextlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
import zstandard
from bson import ObjectId

from tensordb_data.blobs.keys import is_key
from tensordb_data.blobs.segments.format import SegmentIndex, SegmentPlace, read_segment
from tensordb_data.blobs.segments.inline import check_inline, is_inline
from tensordb_data.blobs.segments.references import is_reference, references_of
from tensordb_data.blobs.stores.base import Store
from tensordb_data.common.chunks import batched, chunks, runs_by_size
from tensordb_data.errors import CorruptBlobError, StorageError
from tensordb_data.housekeeping.documents import Schemas, document_fault, faults, project_of
from tensordb_data.params.load import describe
from tensordb_data.tensors.compression import decompress
from tensordb_data.tensors.lease import SECONDS
from tensordb_data.tensors.read import TensorLocation
from tensordb_data.tensors.write import TENSORS_AT_ONCE, digest, tensor_id
from tensordb_data.warehouse.deletion_log import FOLDER, read

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_ROUND = 64 << 20  # bytes read at once
_OPEN = 64  # segments whose places are kept while samples are looked at
_BATCH = 1000
LISTED = 10_000

Doc = Mapping[str, Any]
Progress = Callable[[str, int, int], None]
"""Called with what is looked at, how many of it are done, of how many."""


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be."""

    kind: str
    """`missing object`, `damaged object`, `damaged blob`, `damaged document`, `dangling reference`, `foreign key`,
    `unopened root`, `leftover` or `unknown object`."""
    where: str
    """What it is about: a sample and its field, a parameter set, a key of the store."""
    what: str
    """What was expected, and what was found."""


@dataclass
class Checked:
    """What fsck has checked, and what it has found."""

    segments: int = 0
    samples: int = 0
    tensors: int = 0
    sets: int = 0
    """Checkpoints and architectures."""
    bytes: int = 0
    """Bytes whose checksums were verified."""
    findings: list[Finding] = field(default_factory=list)
    """The first ten thousand findings."""
    more: int = 0
    """How many findings there are beyond those."""
    warnings: list[str] = field(default_factory=list)
    """What is intact, and not as this library would have written it."""


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


def check(warehouse: Warehouse, progress: Progress | None = None) -> Checked:
    """See `TensorDB.fsck`."""
    run = _Check(warehouse, progress or (lambda what, done, total: None))
    run.segments()
    run.samples()
    run.tensors()
    run.sets("params")
    run.sets("architectures")
    run.tombstones()
    run.leftovers()
    run.unknown_objects()
    return run.report


class _Check:
    def __init__(self, warehouse: Warehouse, progress: Progress) -> None:
        self._warehouse, self._mongo, self._progress = warehouse, warehouse.index.database, progress
        self.report = Checked()
        self._damaged: dict[ObjectId, frozenset[int]] = {}
        self._bad: set[ObjectId] = set()
        self._unopened: set[Any] = set()
        self._datasets: Counter[tuple[str, str]] = Counter()
        self._strangers: Counter[tuple[tuple[str, str], tuple[str, str]]] = Counter()
        self._open: OrderedDict[ObjectId, _Segment] = OrderedDict()

    # Data

    def segments(self) -> None:
        """Every segment is there, describes itself, and its blobs match their checksums."""
        for doc in self._sound("segments", {"state": {"$in": ["live", "dying"]}}):
            self.report.segments += 1
            store = self._store(doc)
            if store is None:
                continue
            with self._document("segments", doc, {"state": doc["state"]}, self._bad.add):
                place = SegmentPlace.from_doc(doc)
                index, _ = read_segment(store, place.key)
                place.check(store.size(place.key), index)
                damaged = frozenset(self._damaged_blobs(store, place.key, index))
                if damaged:
                    self._damaged[doc["_id"]] = damaged

    def _damaged_blobs(self, store: Store, key: str, index: SegmentIndex) -> Iterator[int]:
        for low, high in runs_by_size(index.lengths.tolist(), _ROUND):
            offsets, lengths = index.offsets[low:high].tolist(), index.lengths[low:high].tolist()
            parts = store.get_ranges(key, offsets, lengths)
            self.report.bytes += sum(lengths)
            for part, expected, offset in zip(parts, index.checksums[low:high].tolist(), offsets, strict=True):
                if xxhash.xxh3_64_intdigest(part) != expected:
                    yield offset

    def samples(self) -> None:
        """Every blob of every sample lies in a segment that has it, or is whole in the document."""
        order = [("_tdb.p", 1), ("dataset", 1), ("_tdb.s", 1)]  # segment by segment, mostly
        schemas = Schemas(self._mongo["datasets"])
        for doc in self._all("data", {}, None, order):
            self.report.samples += 1
            project, dataset = project_of(doc), doc.get("dataset")
            where = f"sample {doc['_id']} of dataset {dataset!r} of {project!r}"
            scope = (project, dataset) if isinstance(project, str) and isinstance(dataset, str) else None
            if scope is not None:
                self._datasets[scope] += 1
            for field_name, what in faults(doc, schemas.of(doc)):
                self._find("damaged document", where if field_name is None else f"{where}, field {field_name!r}", what)
            for name, part in references_of(doc).items():
                if is_reference(part):
                    with self._document("data", doc, {f"_tdb.b.{name}": part}):
                        self._blob(doc, f"{where}, field {name!r}", name, part)
                        if scope is not None and not is_inline(part):
                            home = self._segment(part["k"]).home
                            self._strangers[scope, home or scope] += 1
        self._warn_of_strangers()

    def _blob(self, doc: Doc, where: str, name: str, part: Doc) -> None:
        complaint = self._complaint(part)
        if complaint is not None and self._mongo["data"].find_one(
            {"_id": doc["_id"], f"_tdb.b.{name}": part}, {"_id": 1}
        ):
            self._find(complaint[0], where, complaint[1])

    def _warn_of_strangers(self) -> None:
        known = {(doc["_id"]["p"], doc["_id"]["d"]) for doc in self._mongo["datasets"].find({}, {"_id": 1})}
        for (project, dataset), count in self._datasets.items():
            if (project, dataset) not in known:
                self.report.warnings.append(
                    f"{count:,} samples are in dataset {dataset!r} of project {project!r}, which has no schema: "
                    "another tool has put them there, and they cannot be streamed"
                )
        for (scope, home), count in self._strangers.items():
            if home == scope:
                continue
            self.report.warnings.append(
                f"{count:,} blobs of samples in dataset {scope[1]!r} of project {scope[0]!r} are in segments of "
                f"dataset {home[1]!r} of {home[0]!r}: another tool has moved the samples, and a rebuild would put "
                "them back; use db.data.rename for that"
            )

    def _complaint(self, part: Doc) -> tuple[str, str] | None:
        if not is_inline(part):
            return self._segment(part["k"]).complaint(part["o"], part["n"])
        try:
            self.report.bytes += part["n"]
            check_inline(part["d"], part.get("x"))
        except CorruptBlobError as error:
            return "damaged blob", str(error)
        return None

    def _segment(self, id: ObjectId) -> _Segment:
        found = self._open.get(id)
        if found is None:
            found = self._open[id] = self._read(id)
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)
        return found

    def _read(self, id: ObjectId) -> _Segment:
        doc = self._mongo["segments"].find_one({"_id": id, "state": {"$in": ["live", "dying"]}})
        if doc is None or id in self._bad:
            return _Segment(None, frozenset())
        store = self._store(doc)
        if store is None:
            return _Segment(None, frozenset(), unopened=True)
        try:
            place = SegmentPlace.from_doc(doc)
            index, _ = read_segment(store, place.key)
        except StorageError:
            return _Segment(None, frozenset())
        return _Segment(index, self._damaged.get(id, frozenset()), home=(doc["p"], doc["dataset"]))

    # Parameters and architectures

    def tensors(self) -> None:
        """Every tensor is where its document says, and is what its name says."""
        group: list[Doc] = []
        for doc in self._sound("tensors", {"state": {"$in": ["live", "dying"]}}, None, [("key", 1)]):
            self.report.tensors += 1
            with self._document("tensors", doc):
                TensorLocation.from_doc("", bytes(doc["_id"]["h"]), doc)
                if group and ((doc["key"], doc["root"]) != (group[0]["key"], group[0]["root"]) or len(group) == _BATCH):
                    self._object(group)
                    group = []
                group.append(doc)
        if group:
            self._object(group)

    def _object(self, group: Sequence[Doc]) -> None:
        key, whole = group[0]["key"], []
        store = self._store(group[0])
        if store is None:
            return
        try:
            size = store.size(key)
        except StorageError as error:
            self._lost(f"{store.url}/{key}", group, error)
            return
        for doc in group:
            with self._document("tensors", doc):
                TensorLocation.from_doc(key, bytes(doc["_id"]["h"]), doc).check_within(size, self._users([doc]))
                whole.append(doc)
        for low, high in runs_by_size((doc["n"] for doc in whole), _ROUND):
            some = whole[low:high]
            try:
                parts = store.get_ranges(key, [doc["o"] for doc in some], [doc["n"] for doc in some])
            except StorageError as error:
                self._lost(f"{store.url}/{key}", some, error)
                return
            for doc, part in zip(some, parts, strict=True):
                self.report.bytes += doc["n"]
                if _content(doc, part) != bytes(doc["_id"]["h"]):
                    what = f"the stored bytes do not match their checksum ({self._users([doc])})"
                    self._find("damaged blob", f"{store.url}/{key} at {doc['o']}, {doc['n']} bytes", what)

    def _lost(self, where: str, tensors: Sequence[Doc], error: StorageError) -> None:
        """Tensors whose object cannot be read, unless a gc has removed it meanwhile."""
        still = {"_id": {"$in": [doc["_id"] for doc in tensors]}, "key": tensors[0]["key"]}
        if self._mongo["tensors"].find_one(still):
            self._find(_kind(error), where, f"{error} ({self._users(tensors)})")

    def _users(self, tensors: Sequence[Doc]) -> str:
        contents, project = [doc["_id"]["h"] for doc in tensors], tensors[0]["_id"]["p"]
        used = {"_tdb.p": project, "_tdb.tensors": {"$in": contents}}
        sets = list(self._mongo["params"].find(used, {"run": 1, "step": 1}).limit(4))
        others = list(self._mongo["architectures"].find(used, {"name": 1, "version": 1}).limit(4))
        names = [*map(describe, sets), *map(_architecture, others)]
        return "used by " + (", ".join(names[:3]) or "nothing") + (" and others" if len(names) > 3 else "")

    def sets(self, name: str) -> None:
        """Every tensor that a document refers to is known."""
        for doc in self._sound(name, {}, {"_tdb": 1, "run": 1, "step": 1, "name": 1, "version": 1}):
            self.report.sets += 1
            with self._document(name, doc):
                self._set(name, doc)

    def _set(self, name: str, doc: Doc) -> None:
        contents, project = doc["_tdb"].get("tensors", ()), doc["_tdb"]["p"]
        wanted = {_digest(content) for content in contents}
        known = {
            bytes(row["_id"]["h"])
            for chunk in chunks(contents, TENSORS_AT_ONCE)
            for row in self._mongo["tensors"].find({"_id": {"$in": [tensor_id(project, each) for each in chunk]}})
        }
        absent = len(wanted - known)
        if absent and self._mongo[name].find_one({"_id": doc["_id"]}, {"_id": 1}):
            where = describe(doc) if name == "params" else _architecture(doc)
            self._find("dangling reference", where, f"{absent} of its {len(contents)} tensors are not in the index")

    # All

    def tombstones(self) -> None:
        """What is remembered of deletions can be read."""
        for doc in self._sound("tombstones", {"state": "live"}):
            store = self._store(doc)
            if store is None:
                continue
            with self._document("tombstones", doc):
                read(store, doc["key"])

    def leftovers(self) -> None:
        """What was begun and never ended; the next gc sees to it."""
        silent = {"$subtract": ["$$NOW", int(SECONDS * 1000)]}
        writing = {"state": "writing", "$expr": {"$lt": ["$created", silent]}}
        for filter, what in ((writing, "its writer never came back"), ({"state": "gone"}, "a gc was stopped")):
            for doc in self._mongo["segments"].find(filter, {"key": 1, "state": 1}):
                text = f"in state {doc['state']!r}: {what}; the next gc removes it"
                self._find("leftover", str(doc.get("key")), text)
        for doc in self._mongo["leases"].find({"state": "held", "$expr": {"$lt": ["$until", "$$NOW"]}}):
            self._find("leftover", f"lease {doc['_id']}", "its saver never came back; the next gc ends it")
        for root in self._warehouse.blobs.opened:
            store = self._warehouse.blobs.store(root["id"])
            count, nbytes = store.sweep(SECONDS, dry_run=True)
            if count:
                self._find(
                    "leftover", store.url, f"{count} halves of objects ({nbytes:,} bytes); the next gc removes them"
                )

    def unknown_objects(self) -> None:
        """Objects are named in the index before they are written: those that are not belong to nobody."""
        for root in self._warehouse.blobs.opened:
            store = self._warehouse.blobs.store(root["id"])
            for folder in ("segments/", "params/", "architectures/", FOLDER):
                for keys in batched((key for key, _ in store.list(folder)), _BATCH):
                    self._unknown(store, keys)

    def _unknown(self, store: Store, keys: Sequence[str]) -> None:
        ids = [ObjectId(name) for key in keys if ObjectId.is_valid(name := key.rsplit("/", 1)[1])]
        known = {doc["key"] for doc in self._mongo["segments"].find({"_id": {"$in": ids}}, {"key": 1})}
        known |= {doc["key"] for doc in self._mongo["tombstones"].find({"_id": {"$in": ids}}, {"key": 1})}
        known |= set(self._mongo["tensors"].distinct("key", {"key": {"$in": list(keys)}}))
        rest = [key for key in keys if key not in known]
        for lease in self._mongo["leases"].find({"objects.key": {"$in": rest}}) if rest else ():
            known |= {at["key"] for at in lease["objects"]}
        for key in keys:
            if key not in known:
                self._find("unknown object", f"{store.url}/{key}", "nothing in the index names it")

    def _sound(self, name: str, filter: Doc, fields: Doc | None = None, sort: Any = None) -> Iterator[Doc]:
        """The documents as `_all` gives them, without those that another tool has made unreadable, which are named."""
        for doc in self._all(name, filter, fields, sort):
            what = document_fault(name, doc)
            if what is None:
                yield doc
            else:
                self._find("damaged document", f"{name} {doc['_id']}", what)

    def _store(self, doc: Doc) -> Store | None:
        """The store that a document names; None if it cannot be opened. The first time, this is a finding."""
        root, key = doc["root"], doc["key"]
        if not is_key(key):
            self._find("foreign key", f"{key!r:.100}", "no blob is named so; nothing will be deleted there")
        try:
            return self._warehouse.blobs.store(root)
        except StorageError as error:
            if root not in self._unopened:
                self._unopened.add(root)
                self._find("unopened root", f"root {root}", str(error))
            return None

    def _all(self, name: str, filter: Doc, fields: Doc | None = None, sort: Any = None) -> Iterator[Doc]:
        total = self._mongo[name].count_documents(dict(filter))
        sort = sort or [("_id", 1)]
        found = self._mongo[name].find(dict(filter), fields, sort=sort, batch_size=_BATCH, allow_disk_use=True)
        for done, doc in enumerate(found):
            self._progress(name, done, total)
            yield doc
        self._progress(name, total, total)

    @contextlib.contextmanager
    def _document(
        self, name: str, doc: Doc, still: Doc | None = None, bad: Callable[[Any], None] | None = None
    ) -> Iterator[None]:
        """What is wrong with one document, or with what it refers to, is found, and the check goes on.

        Args:
            name: The collection.
            doc: The document.
            still: What must still hold for it, or a gc has taken it meanwhile.
            bad: Called with its `_id`.
        """
        try:
            yield
        except (StorageError, LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            if self._mongo[name].find_one({"_id": doc["_id"], **(still or {})}, {"_id": 1}):
                if bad is not None:
                    bad(doc["_id"])
                kind = _kind(error) if isinstance(error, StorageError) else "damaged document"
                told = str(error) if isinstance(error, StorageError) else f"it cannot be read: {error!r}"
                self._find(kind, f"document {doc['_id']} of {name}", told)

    def _find(self, kind: str, where: str, what: str) -> None:
        if len(self.report.findings) < LISTED:
            self.report.findings.append(Finding(kind, where, what))
        else:
            self.report.more += 1


def _kind(error: StorageError) -> str:
    return "damaged object" if isinstance(error, CorruptBlobError) else "missing object"


def _content(tensor: Doc, stored: memoryview) -> bytes | None:
    """The digest of a tensor that is stored so; None if it cannot be had."""
    if tensor.get("z") is None:
        return digest(stored)
    try:
        return decompress(stored, None, tensor["z"])
    except zstandard.ZstdError:
        return None


def _digest(content: object) -> bytes:
    if not isinstance(content, bytes):
        raise TypeError(f"expected the digest of a tensor, found {content!r}")
    return content


def _architecture(doc: Doc) -> str:
    return f"architecture {doc['name']!r} version {doc.get('version')}"
