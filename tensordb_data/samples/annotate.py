"""Annotate: set values of many samples, and note who has set them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.common.chunks import chunks
from tensordb_data.errors import QueryError, SchemaError
from tensordb_data.mongo.retry import read_all
from tensordb_data.query.update import clean_update
from tensordb_data.samples.changes.each import logged_updates
from tensordb_data.samples.mutations import LIMIT, Mutation, are_few
from tensordb_data.samples.update import evolve, fit
from tensordb_data.schema import Field
from tensordb_data.schema.schema import PROVENANCE, Schema
from tensordb_data.search.index import search_index
from tensordb_data.warehouse.annotation import Annotated, check_ids, check_source
from tensordb_data.warehouse.index import Update

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_CHUNK = 5000


def annotate(warehouse: Warehouse, values: Mapping[ObjectId, Mapping[str, Any]], source: str) -> Annotated:
    """See `Data.annotate`."""
    check_source(source)
    check_ids(values)
    of = _datasets(warehouse, list(values))
    names = sorted(set(of.values()))
    updates = _updates(warehouse, of, values, {"source": source, "at": dt.datetime.now(dt.timezone.utc)}, names)
    changed = 0
    if updates:
        search_index(warehouse, "data").add_groups({}, _texts(of, updates))
        fields = {path.split(".")[0] for _, update in updates for changes in update.values() for path in changes}

        alone, few = len(updates) <= LIMIT, are_few(warehouse, len(updates), names)
        with Mutation(warehouse, "annotate", names, alone=alone, stamps=few) as mutation:

            def change(some: Sequence[Update], session: Any) -> int:
                mutation.check_not_renamed(fields)
                return logged_updates(warehouse, mutation, some, of, fields, "annotate", source, session)

            for some in chunks(updates, LIMIT):
                changed += mutation.step(some, change)
    return Annotated(changed, tuple(id for id in values if id not in of))


def _datasets(warehouse: Warehouse, ids: Sequence[ObjectId]) -> dict[ObjectId, str]:
    """The dataset of each sample that exists."""
    found: dict[ObjectId, str] = {}
    for some in chunks(ids, _CHUNK):
        chosen = warehouse.index["data"].find({"_id": {"$in": list(some)}, "_tdb.p": warehouse.project}, {"dataset": 1})
        found.update((doc["_id"], doc["dataset"]) for doc in read_all(chosen))
    return found


def _texts(of: Mapping[ObjectId, str], updates: Sequence[Update]) -> dict[tuple[str, str, str], ObjectId]:
    """The texts among the new values, for the search index."""
    return {
        (of[filter["_id"]], field, value): filter["_id"]
        for filter, update in updates
        for field, value in update.get("$set", {}).items()
        if type(value) is str and "." not in field
    }


def _updates(
    warehouse: Warehouse,
    of: Mapping[ObjectId, str],
    values: Mapping[ObjectId, Mapping[str, Any]],
    by: Mapping[str, Any],
    names: Sequence[str],
) -> list[Update]:
    """Check all values against the schemas, add new fields to the schemas, and make the updates to send."""
    schemas = warehouse.datasets.schemas(names)
    added: dict[str, dict[str, Field]] = {}
    updates: list[Update] = []
    for id, given in values.items():
        if not isinstance(given, Mapping):
            raise QueryError(f"sample {id}: expected a dict of field to value, found {type(given).__name__}")
        changes = clean_update({"$set": given})["$set"]
        dataset = of.get(id)
        if dataset is None:
            continue
        schema = schemas[dataset]
        if PROVENANCE in schema:
            raise SchemaError(
                f"dataset {dataset!r} has a field {PROVENANCE!r} of its own, where annotations are noted; write the"
                " samples into a dataset without it"
            )
        new: dict[str, dict[str, Field]] = {}
        update: dict[str, dict[str, Any]] = {}
        try:
            for path, value in changes.items():
                operator, fitted = fit(dataset, schema, "$set", path, value, new)
                update.setdefault(operator, {})[path] = fitted
                update.setdefault("$set", {})[f"{PROVENANCE}.{path.split('.')[0]}"] = by
        except (QueryError, SchemaError) as error:
            raise type(error)(f"sample {id}: {error}; nothing was annotated") from None
        if new:
            added.setdefault(dataset, {}).update(new[dataset])
            schemas[dataset] = Schema({**schema, **new[dataset]})
        updates.append(({"_id": id, "_tdb.p": warehouse.project}, update))
    evolve(warehouse, added)
    return updates
