"""Restore: the samples of today get the values that they had when they were frozen, as an update."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.common.chunks import chunks
from tensordb_data.common.html import Report
from tensordb_data.errors import QueryError, ReadOnlyError, SchemaError
from tensordb_data.frozen.bound_query import FrozenQuery
from tensordb_data.frozen.columns import MISSING, PROVENANCE, TAGS
from tensordb_data.frozen.frozen_set import codec_of
from tensordb_data.mongo.retry import read_all
from tensordb_data.query.update import clean_update
from tensordb_data.samples.changes.each import logged_updates
from tensordb_data.samples.mutations import LIMIT, Mutation, are_few
from tensordb_data.samples.update import fit
from tensordb_data.schema.schema import Schema, stored_schema
from tensordb_data.search.index import search_index
from tensordb_data.time.diff import is_same
from tensordb_data.warehouse.index import Update

if TYPE_CHECKING:
    from tensordb_data.frozen.codec import Codec
    from tensordb_data.warehouse.bound_query import BoundQuery
    from tensordb_data.warehouse.context import Warehouse

_READ = 5000

Doc = Mapping[str, Any]


@dataclass
class Restored(Report):
    """What a restore did, and what it could not do."""

    updated: int = 0
    """How many samples got a value back."""
    same: int = 0
    """How many had the values that they had then."""
    deleted: int = 0
    """How many samples of the set are not there any more."""
    fields: dict[str, int] = field(default_factory=dict)
    """In how many samples each field was restored, by its name of today."""
    renamed: dict[str, str] = field(default_factory=dict)
    """The new names of fields that were renamed since."""
    not_applied: dict[str, int] = field(default_factory=dict)
    """In how many samples something was not restored, by the reason."""


def restore(bound: BoundQuery, fields: Sequence[str] | None) -> Restored:
    """See `FrozenSelection.restore`."""
    assert isinstance(bound, FrozenQuery)
    if bound.warehouse.address.read_only:
        raise ReadOnlyError("nothing can be restored: this TensorDB was opened with read_only=True")
    names = _names(bound, fields)
    restoring = _Restoring(bound.warehouse, names, f"frozen:{bound.set.doc['name']}")
    updates = list(restoring.updates(bound))
    restoring.apply(updates)
    return restoring.report


def _names(bound: FrozenQuery, fields: Sequence[str] | None) -> list[str]:
    known = [name for name in bound.set.values if name != PROVENANCE]
    if fields is None:
        return known
    if isinstance(fields, str) or not all(isinstance(name, str) for name in fields) or not fields:
        raise QueryError(f'restore takes a list of fields, such as ["label"]; found {fields!r:.200}')
    for name in fields:
        if name in bound.set.blobs and name not in known:
            raise QueryError(f"restore: {name!r} is a blob, and blobs are immutable; the set has the old one")
        if name not in known:
            raise QueryError(f"restore: the set has no field {name!r}; it has {', '.join(known)}")
    return list(dict.fromkeys(fields))


class _Restoring:
    def __init__(self, warehouse: Warehouse, names: Sequence[str], source: str) -> None:
        self._warehouse, self._names, self._source = warehouse, list(names), source
        self._codec: Codec = codec_of(warehouse)
        self.report = Restored()
        self._not_applied: Counter[str] = Counter()
        self._schemas: dict[str, tuple[Schema, Mapping[str, str]]] = {}
        self._of: dict[ObjectId, str] = {}
        self._groups: dict[tuple[str, tuple[str, ...]], Any] = {}
        self._texts: dict[tuple[str, str, str], Any] = {}

    def updates(self, bound: FrozenQuery) -> Iterator[Update]:
        """An update for each sample that has another value today. All of them are checked against the schemas."""
        read = [*self._names, PROVENANCE]
        for block in bound.set.blocks(read, (), limit=bound.query.limit):
            ids = [block.id(row) for row in range(len(block))]
            columns = {name: block.values[name].items(MISSING) for name in self._names}
            by = block.values[PROVENANCE].items({}) if PROVENANCE in block.values else [{}] * len(ids)
            today = self._today(ids)
            for row, id in enumerate(ids):
                doc = today.get(id)
                if doc is None:
                    self.report.deleted += 1
                    continue
                then = {name: column[row] for name, column in columns.items()}
                update = self._update(doc, then, by[row] if isinstance(by[row], Mapping) else {})
                if update:
                    yield {"_id": id, "_tdb.p": self._warehouse.project}, update
                else:
                    self.report.same += 1
        self.report.not_applied = dict(self._not_applied)

    def _today(self, ids: Sequence[ObjectId]) -> dict[ObjectId, Doc]:
        found: dict[ObjectId, Doc] = {}
        for some in chunks(ids, _READ):
            wanted = {"_tdb.p": self._warehouse.project, "_id": {"$in": list(some)}}
            found.update((doc["_id"], doc) for doc in read_all(self._warehouse.index["data"].find(wanted, {"_tdb": 0})))
        return found

    def _schema(self, dataset: str) -> tuple[Schema, Mapping[str, str]]:
        """The schema of a dataset, and the new names of fields that were renamed."""
        if dataset not in self._schemas:
            doc = self._warehouse.index["datasets"].find_one({"_id": self._warehouse.datasets.id(dataset)}) or {}
            schema = stored_schema(doc.get("schema")) or Schema({})
            self._schemas[dataset] = schema, doc.get("renamed") or {}
        return self._schemas[dataset]

    def _update(self, doc: Doc, then: Mapping[str, Any], by: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        dataset = doc["dataset"]
        schema, renamed = self._schema(dataset)
        update: dict[str, dict[str, Any]] = {}
        for name, value in then.items():
            if name == TAGS:
                if not is_same(value, doc.get(TAGS, MISSING), self._codec):
                    tags = [] if value is MISSING else value
                    update.setdefault("$set", {})[TAGS] = tags
                    self._groups[dataset, tuple(tags)] = doc["_id"]
                    self._count(TAGS)
                continue
            target = name if name in schema else renamed.get(name, name)
            if is_same(value, doc.get(target, MISSING), self._codec):
                continue
            try:
                operator, fitted = self._fitted(dataset, schema, target, value)
            except (SchemaError, QueryError):
                field = schema.get(target)
                why = f"what it held does not fit {field!r}" if field else "it is not in the schema any more"
                self._not_applied[f"dataset {dataset!r}, field {target!r}: {why}"] += 1
                continue
            if target != name:
                self.report.renamed[name] = target
            update.setdefault(operator, {})[target] = fitted
            who = by.get(name)
            update.setdefault("$unset" if who is None else "$set", {})[f"{PROVENANCE}.{target}"] = who or ""
            if type(fitted) is str and operator == "$set":
                self._texts[dataset, target, fitted] = doc["_id"]
            self._count(target)
        if update:
            self._of[doc["_id"]] = dataset
        return update

    def _fitted(self, dataset: str, schema: Schema, name: str, value: Any) -> tuple[str, Any]:
        if name not in schema:
            raise SchemaError(f"dataset {dataset!r}, field {name!r}: it is not in the schema any more")
        if value is MISSING:
            return fit(dataset, schema, "$unset", name, "", {})
        return fit(dataset, schema, "$set", name, clean_update({"$set": {name: value}})["$set"][name], {})

    def _count(self, name: str) -> None:
        self.report.fields[name] = self.report.fields.get(name, 0) + 1

    def apply(self, updates: Sequence[Update]) -> None:
        """Make the updates: a reader of a plan sees all of them, or none."""
        if not updates:
            return
        search_index(self._warehouse, "data").add_groups(self._groups, self._texts)

        datasets, fields = sorted(set(self._of.values())), self.report.fields
        alone, few = len(updates) <= LIMIT, are_few(self._warehouse, len(updates), datasets)
        with Mutation(self._warehouse, "update", datasets, alone=alone, stamps=few) as mutation:

            def change(some: Sequence[Update], session: Any) -> int:
                mutation.check_not_renamed(fields)
                of, source = self._of, self._source
                return logged_updates(self._warehouse, mutation, some, of, fields, "update", source, session)

            for some in chunks(updates, LIMIT):
                self.report.updated += mutation.step(some, change)
