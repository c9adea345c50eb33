"""Rename a field of a dataset.

One transaction puts the new name into the schema and moves what still lies under the old name only: the switch. If
that is more than a transaction takes, the values are copied to the new name first, 10,000 samples at a time, and what
is left under the old name is removed after the switch. The schema tells which of the two names counts, so that a call
that was killed has renamed the field, or has not.

    datasets: {…, renaming: {from, to}, renamed: {old: new}}

`renaming` says that there may be copies that no schema names. `renamed` is for those that still use the old name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pymongo import ReturnDocument

from tensordb_data.common.options import nearest
from tensordb_data.errors import BusyError, NotFoundError, SchemaError, UnsupportedError
from tensordb_data.mongo.retry import read_all, retry_while_unavailable
from tensordb_data.samples.changes.entries import write_entry
from tensordb_data.samples.mutations import LIMIT, end_silent
from tensordb_data.schema.schema import PROVENANCE, Schema, check_field_name, stored_schema
from tensordb_data.search.index import search_index

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse


def rename_field(warehouse: Warehouse, dataset: str, old: str, new: str) -> Schema:
    """See `DatasetSchema.rename`."""
    check_field_name(dataset, new)
    if not warehouse.index.is_server:
        raise UnsupportedError("mongomock cannot rename a field: it knows no pipelines; use a real server")
    renaming = _Renaming(warehouse, dataset, old, new)
    renaming.check()
    warehouse.index.make("changes")
    while (schema := warehouse.index.transaction(renaming.switch)) is None:
        renaming.copy()
    renaming.clean()
    return schema


class _Renaming:
    def __init__(self, warehouse: Warehouse, dataset: str, old: str, new: str) -> None:
        self._warehouse, self._dataset, self._old, self._new = warehouse, dataset, old, new
        self._datasets, self._data = warehouse.index["datasets"], warehouse.index["data"]
        self._id = warehouse.datasets.id(dataset)
        self._here = {"_tdb.p": warehouse.project, "dataset": dataset}
        self._where = f"dataset {dataset!r}, field {old!r}"

    def check(self) -> None:
        """Refuse what cannot be, and remove the copies of a former call that was to give another name."""
        doc = retry_while_unavailable(lambda: self._datasets.find_one({"_id": self._id}), reads=True)
        if doc is None or stored_schema(doc["schema"]) is None:
            raise NotFoundError(f"dataset {self._dataset!r} has no schema yet, and so no field to rename")
        if doc.get("open"):
            end_silent(self._warehouse, [entry["id"] for entry in doc["open"]], [self._dataset])
        if self._is_done(doc):
            return
        self._check(doc)
        former = doc.get("renaming")
        if former is not None and former != self._pair:
            self._each(_has(former["to"]), [{"$unset": _paths(former["to"])}])
            former = None
        there = {**self._here, **_has(self._new)}
        if former is None and retry_while_unavailable(lambda: self._data.find_one(there, {"_id": 1}), reads=True):
            raise SchemaError(
                f"{self._where}: there are samples with a value {self._new!r}, which is not in the schema, as another"
                " tool has written it; choose another name, or remove these values with that tool"
            )

    @property
    def _pair(self) -> dict[str, str]:
        return {"from": self._old, "to": self._new}

    def _is_done(self, doc: Mapping[str, Any]) -> bool:
        schema = stored_schema(doc["schema"]) or Schema({})
        return self._old not in schema and self._new in schema and doc.get("renamed", {}).get(self._old) == self._new

    def _check(self, doc: Mapping[str, Any]) -> None:
        schema = stored_schema(doc["schema"]) or Schema({})
        if "leaving" in doc:
            raise BusyError(f"dataset {self._dataset!r} is being renamed or dropped; rename its field after that")
        if self._old not in schema:
            known = ", ".join(schema)
            raise SchemaError(f"{self._where}: expected one of the fields {known}{nearest(self._old, schema)}")
        if self._new in schema:
            raise SchemaError(f"{self._where}: there is a field {self._new!r} already; choose another name")

    def switch(self, session: Any) -> Schema | None:
        """In a transaction, give the field its new name; None if too many samples have nothing under it yet."""
        # This write comes first: of this and a commit, one has to wait.
        doc = self._datasets.find_one_and_update(
            {"_id": self._id}, {"$inc": {"mut": 1}}, return_document=ReturnDocument.AFTER, session=session
        )
        if doc is None or stored_schema(doc["schema"]) is None:
            raise NotFoundError(f"dataset {self._dataset!r} was renamed or dropped by another process meanwhile")
        if self._is_done(doc):
            return Schema.from_doc(doc["schema"])
        self._check(doc)
        if doc.get("open"):
            change = doc["open"][0]
            raise BusyError(
                f"{self._where}: it cannot be renamed while samples are changed ({change['kind']} by process"
                f" {change['pid']} on {change['host']}): rename it when that has ended"
            )
        left = list(self._data.find({**self._here, **self._differs}, {"_tdb.b": 0}, session=session).limit(LIMIT + 1))
        if len(left) > LIMIT:
            return None
        self._find_texts(left)
        ids = {"_id": {"$in": [sample["_id"] for sample in left]}}
        self._data.update_many(ids, [*self._copied, {"$unset": _paths(self._old)}], session=session)
        names = {name: self._new if name == self._old else name for name in doc["schema"]}
        schema = {names[name]: field for name, field in doc["schema"].items()}
        before = {name: self._new if to == self._old else to for name, to in doc.get("renamed", {}).items()}
        renamed = {name: to for name, to in before.items() if name != self._new} | {self._old: self._new}
        changes = {"$set": {"schema": schema, "renamed": renamed}, "$unset": {"renaming": ""}}
        self._datasets.update_one({"_id": self._id}, changes, session=session)
        to = {"$rename": {self._old: self._new}}
        write_entry(
            self._warehouse, self._dataset, "rename field", number=doc["mut"], count=0, session=session, update=to
        )
        return Schema.from_doc(schema)

    def copy(self) -> None:
        """Copy the values to the new name, where no reader looks for them yet."""
        mark = {"$set": {"renaming": self._pair}}
        retry_while_unavailable(lambda: self._datasets.update_one({"_id": self._id}, mark))
        self._each(self._differs, self._copied, self._find_texts)

    def clean(self) -> None:
        """Remove what is left under the old name."""
        self._each(_has(self._old), [{"$unset": _paths(self._old)}])
        search_index(self._warehouse, "data").forget_words(self._dataset, self._old)

    def _each(
        self,
        which: Mapping[str, Any],
        change: Sequence[Mapping[str, Any]],
        before: Callable[[Sequence[Mapping[str, Any]]], None] = lambda docs: None,
    ) -> None:
        """Change the samples of a filter, which they fit no longer afterwards."""
        while docs := read_all(self._data.find({**self._here, **which}, {"_tdb.b": 0}).limit(LIMIT)):
            before(docs)
            ids = {"_id": {"$in": [doc["_id"] for doc in docs]}}
            self._warehouse.index.transaction(partial(self._apply, ids, change))

    def _apply(self, ids: Mapping[str, Any], change: Sequence[Mapping[str, Any]], session: Any) -> None:
        self._data.update_many(ids, list(change), session=session)

    def _find_texts(self, docs: Sequence[Mapping[str, Any]]) -> None:
        """Let a search find the texts under the new name."""
        moved = [{**doc, self._new: doc[self._old]} for doc in docs if isinstance(doc.get(self._old), str)]
        search_index(self._warehouse, "data").add_documents(moved)

    @property
    def _differs(self) -> dict[str, Any]:
        pairs = zip(_paths(self._old), _paths(self._new), strict=True)
        return {"$expr": {"$or": [{"$ne": [f"${old}", f"${new}"]} for old, new in pairs]}}

    @property
    def _copied(self) -> list[dict[str, Any]]:
        pairs = zip(_paths(self._old), _paths(self._new), strict=True)
        nothing = {"$cond": [{"$eq": [f"${PROVENANCE}", {}]}, "$$REMOVE", f"${PROVENANCE}"]}
        copied = {new: f"${old}" for old, new in pairs}
        return [{"$unset": _paths(self._new)}, {"$set": copied}, {"$set": {PROVENANCE: nothing}}]


def _paths(field: str) -> list[str]:
    """Where a sample has something of a field: its value, its reference to a blob, and who has annotated it."""
    return [field, f"_tdb.b.{field}", f"{PROVENANCE}.{field}"]


def _has(field: str) -> dict[str, Any]:
    return {"$or": [{path: {"$exists": True}} for path in _paths(field)]}
