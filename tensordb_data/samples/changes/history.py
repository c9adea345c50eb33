"""Read the log of changes: that of a dataset, and that of one sample.

Other tools may have written anything into it. An entry is read as far as it is one.
"""

from __future__ import annotations

import datetime as dt
import operator as operator_
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import bson
import numpy as np
import zstandard
from bson import ObjectId

from tensordb_data.common.bson_values import LENIENT
from tensordb_data.common.listing import Listing, Row
from tensordb_data.common.zstd import expand
from tensordb_data.errors import NotFoundError, QueryError
from tensordb_data.mongo.retry import read_all
from tensordb_data.samples.changes.entries import VALUES, documents

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_NOT_READ = dict.fromkeys(("few", "ids", "s", "old", "new", "r"), 0)
_DAMAGED = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError, MemoryError,
            struct.error, bson.errors.BSONError, zstandard.ZstdError)  # fmt: skip
_TEXT = 1_000
_EARLY = dt.datetime.min

Doc = Mapping[str, Any]


@dataclass(frozen=True)
class Change(Row):
    """An entry of the log of changes."""

    COLUMNS: ClassVar[Sequence[str]] = ("at", "what", "count", "who", "update", "mutation")
    NUMBERS: ClassVar[Collection[str]] = ("count", "mutation")

    at: dt.datetime | None
    """When, on the clock of the server."""
    what: str
    """`"add"`, `"update"`, `"tag"`, `"untag"`, `"annotate"`, `"ingest"`, `"delete"`, `"compact"`, `"rename"`,
    `"rename field"`, or `"prune"` of the log itself."""
    dataset: str
    count: int
    """How many samples; of a `"prune"`, how many entries."""
    by: Doc = field(default_factory=dict)
    """`user`, `host` and `pid`; `source` or `job`, where there is one; and `runs`, those that this process had open."""
    mutation: int | None = None
    """What the mutation counter of the dataset was raised to; None for new samples."""
    update: Doc | None = None
    """What was done to all of them; None where it differs from sample to sample, or is not known."""
    left_out: str = ""
    """What is not in the log, and why."""

    @property
    def who(self) -> str:
        """The source, the job, or the user and the host, with the runs that were open there."""
        for name in ("source", "job"):
            if self.by.get(name):
                return f"{'job ' if name == 'job' else ''}{self.by[name]}"
        person = "@".join(str(self.by[name]) for name in ("user", "host") if self.by.get(name))
        runs = self.by.get("runs")
        named = [f"run {', '.join(map(str, runs))}"] if isinstance(runs, list) and runs else []
        return ", ".join([*([person] if person else []), *named])

    def cells(self) -> Sequence[Any]:
        """What is shown of it."""
        return self.at, self.what, self.count, self.who, self.update, self.mutation


@dataclass(frozen=True)
class SampleChange(Change):
    """What a change did to one sample."""

    COLUMNS: ClassVar[Sequence[str]] = ("at", "what", "old", "new", "who", "mutation")
    NUMBERS: ClassVar[Collection[str]] = ("mutation",)

    old: Doc = field(default_factory=dict)
    """The values before, of the fields that were changed, as far as they are known. A field without a value is None."""
    new: Doc = field(default_factory=dict)
    """The values after."""
    blobs: tuple[str, ...] = ()
    """Fields whose blobs were replaced."""

    def cells(self) -> Sequence[Any]:
        """What is shown of it."""
        new = {**self.new, **dict.fromkeys(self.blobs, "(another blob)")}
        return self.at, self.what, self.old or None, new or self.update, self.who, self.mutation


def list_changes(warehouse: Warehouse, dataset: str, limit: int | None) -> Listing[Change]:
    """See `Data.changes`."""
    if not isinstance(dataset, str):
        raise QueryError(f"changes takes the name of a dataset; found {dataset!r:.100}")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise QueryError(f"limit is the number of changes to read, the newest ones, 1 at least; found {limit!r:.100}")
    of = {"p": warehouse.project, "dataset": dataset}
    found = warehouse.index["changes"].find(of, _NOT_READ)
    if limit is not None:
        found = found.sort([("at", -1), ("m", -1), ("_id", -1)]).limit(limit)
        if warehouse.index.is_server:
            found = found.allow_disk_use(True)
    docs = read_all(found)
    if not docs and warehouse.index["datasets"].find_one({"_id": warehouse.datasets.id(dataset)}, {"_id": 1}) is None:
        raise NotFoundError(f"there is no dataset {dataset!r} in project {warehouse.project!r}")
    return Listing((_change(doc) for doc in sorted(docs, key=_order)), "no changes")


def history(warehouse: Warehouse, id: ObjectId) -> Listing[SampleChange]:
    """See `Data.history`."""
    if not isinstance(id, ObjectId):
        raise QueryError(f"a sample is named by its _id, a bson.ObjectId; found {id!r:.100}")
    project, changes = warehouse.project, warehouse.index["changes"]
    one = {"_id": id, "_tdb.p": project}
    sample = warehouse.index["data"].find_one(one, {"dataset": 1, "_tdb.s": 1})
    here: dict[str, Any] = {} if sample is None else {"dataset": {"$eq": sample.get("dataset")}}
    docs = read_all(changes.find({"p": project, "few": id}, {"r": 0}))
    docs += read_all(changes.find({"p": project, **here, "ids": id}, {"r": 0, "ids": 0, "s": 0}))
    deletion = {"p": project, **here, "ids": id, "k": "delete"}
    gone = [doc for doc in docs if "s" in doc] + read_all(changes.find(deletion, {"dataset": 1, "ids": 1, "s": 1}))
    found = [change for doc in docs if (change := _of_sample(doc, id)) is not None]
    for dataset, sequence in _places(sample, gone, id):
        added = _added(warehouse, dataset, sequence)
        found += [] if added is None else [SampleChange(**_common(added))]
    if not found and sample is None:
        raise NotFoundError(f"no sample of project {project!r} has the _id {id}, and the log of changes names none")
    return Listing(sorted(found, key=lambda change: (_naive(change.at), change.mutation or 0)), "nothing is known")


def _places(sample: Doc | None, gone: Sequence[Doc], id: ObjectId) -> set[tuple[str, int]]:
    """Dataset and sequence number of a sample: of now, and of when it was deleted."""
    found: set[tuple[str, int]] = set()
    internals = None if sample is None else sample.get("_tdb")
    if sample is not None and isinstance(internals, Mapping) and isinstance(internals.get("s"), int):
        found.add((str(sample.get("dataset")), internals["s"]))
    for doc in gone:
        sequence, ids = doc.get("s"), _ids(doc)
        if isinstance(sequence, bytes) and len(sequence) == 8 * len(ids) and id in ids:
            number = int(np.frombuffer(sequence, "<i8")[ids.index(id)])
            found.add((str(doc.get("dataset")), number))
    return found


def _added(warehouse: Warehouse, dataset: str, sequence: int) -> Doc | None:
    """The entry of the commits by which a sequence number came."""
    around = {
        "p": warehouse.project, "dataset": dataset, "lo": {"$lte": sequence}, "hi": {"$gte": sequence},
    }  # fmt: skip
    for doc in read_all(warehouse.index["changes"].find(around).sort("lo", -1)):
        runs = doc.get("r")
        if isinstance(runs, list) and all(isinstance(number, int) for number in runs):
            pairs = zip(runs[::2], runs[1::2], strict=False)
            if any(first <= sequence <= last for first, last in pairs):
                return doc  # type: ignore[no-any-return]
    return None


def _change(doc: Doc) -> Change:
    return Change(**_common(doc))


def _common(doc: Doc) -> dict[str, Any]:
    at, by, number = doc.get("at"), doc.get("by"), doc.get("m")
    return {
        "at": at if isinstance(at, dt.datetime) else None,
        "what": _text(doc.get("k")),
        "dataset": _text(doc.get("dataset")),
        "count": _count(doc.get("n")) or 0,
        "by": by if isinstance(by, Mapping) else {},
        "mutation": _count(number),
        "update": _decoded(doc.get("u")),
        "left_out": _text(doc.get("cut", "")),
    }


def _text(value: Any) -> str:
    return value[:_TEXT] if isinstance(value, str) else "?"


def _count(value: Any) -> int | None:
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _decoded(value: Any) -> Doc | None:
    if not isinstance(value, bytes):
        return None
    try:
        return bson.decode(value, LENIENT)
    except _DAMAGED:
        return None


def _ids(doc: Doc) -> Sequence[Any]:
    found = doc.get("few") or doc.get("ids")
    return found if isinstance(found, list) else []


def _of_sample(doc: Doc, id: ObjectId) -> SampleChange | None:
    """What an entry says of a sample; None if the sample was not changed after all."""
    common = _common(doc)
    update, before = common["update"], _value(doc.get("old"), id)
    if update is None and (given := _value(doc.get("new"), id)) is not None:
        set_, unset = given.get("set"), given.get("unset")
        update = {"$set": set_ if isinstance(set_, Mapping) else {}}
        update["$unset"] = dict.fromkeys(unset if isinstance(unset, list) else (), "")
        blobs = given.get("blobs")
        common["blobs"] = tuple(blob for blob in (blobs if isinstance(blobs, list) else ()) if isinstance(blob, str))
    old, new = _both(update or {}, before)
    if before is not None and old and old == new and not common.get("blobs"):
        return None
    return SampleChange(**common, old=old, new=new)


def _value(data: Any, id: ObjectId) -> Doc | None:
    """The document of a sample among some that are one after the other."""
    if not isinstance(data, bytes):
        return None
    try:
        whole = expand(data, VALUES)
        return next(
            (bson.decode(whole[low:high], LENIENT) for low, high in documents(whole) if id.binary in whole[low:high]),
            None,
        )
    except _DAMAGED:
        return None


def _both(update: Doc, before: Doc | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values before and after an update, of the fields for which both can be told from it."""
    old: dict[str, Any] = {}
    new: dict[str, Any] = {}
    for operator, changes in update.items():
        if not isinstance(changes, Mapping):
            continue
        for path, value in changes.items():
            root, _, inside = str(path).partition(".")
            if root in ("provenance", "_tdb") and inside:
                continue
            if before is not None:
                old[root] = before.get(root)
            after = _after(operator, inside, value, None if before is None else before.get(root), before is not None)
            if after is not _UNKNOWN:
                new[root] = after
    return old, new


_UNKNOWN = object()
_COMPUTED: Mapping[str, Callable[[Any, Any], Any]] = {
    "$inc": operator_.add, "$mul": operator_.mul, "$min": min, "$max": max
}  # fmt: skip


def _after(operator: str, inside: str, value: Any, old: Any, is_known: bool) -> Any:
    if inside:
        return _UNKNOWN
    if operator == "$set":
        return value
    if operator == "$unset":
        return None
    if not is_known:
        return _UNKNOWN
    numbers = all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in (old, value))
    if operator in _COMPUTED and numbers:
        return _COMPUTED[operator](old, value)
    tags = [tag for tag in old if isinstance(tag, str)] if isinstance(old, list) else []
    if operator == "$addToSet" and isinstance(value, Mapping) and isinstance(value.get("$each"), list):
        return [*tags, *(tag for tag in value["$each"] if tag not in tags)]
    if operator == "$pull" and isinstance(value, Mapping) and isinstance(value.get("$in"), list):
        return [tag for tag in tags if tag not in value["$in"]]
    return _UNKNOWN


def _naive(at: dt.datetime | None) -> dt.datetime:
    return _EARLY if at is None else at.replace(tzinfo=None)


def _order(doc: Doc) -> tuple[Any, ...]:
    at = doc.get("at")
    return (_naive(at if isinstance(at, dt.datetime) else None), _count(doc.get("m")) or 0, str(doc.get("_id")))
