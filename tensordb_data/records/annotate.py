"""Annotate: values of many samples set by a machine, with a note of who set them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.codecs import Field
from tensordb_data.errors import QueryError, SchemaError
from tensordb_data.mutations import LIMIT, Mutation
from tensordb_data.records.bulk import Update, update_each
from tensordb_data.records.relabel import evolve, fit
from tensordb_data.records.schema import PROVENANCE, Schema
from tensordb_data.records.update import clean_update

if TYPE_CHECKING:
    from tensordb_data.warehouse import TensorDB

_CHUNK = 5000
_LONGEST_SOURCE = 200


@dataclass(frozen=True)
class Annotated:
    """What came of it."""

    changed: int
    """Samples that were annotated."""
    unknown: tuple[ObjectId, ...]
    """Ids of no sample of this project, in the order given."""


def annotate(db: TensorDB, values: Mapping[ObjectId, Mapping[str, Any]], source: str) -> Annotated:
    """See `Data.annotate`."""
    check_source(source)
    check_ids(values)
    of = _datasets(db, list(values))
    names = sorted(set(of.values()))
    updates = _updates(db, of, values, {"source": source, "at": dt.datetime.now(dt.timezone.utc)}, names)
    changed = 0
    if updates:
        db.data._entries.add_groups({}, _texts(of, updates))
        with Mutation(db, "annotate", names, alone=len(updates) <= LIMIT) as mutation:
            for low in range(0, len(updates), LIMIT):
                changed += mutation.step(updates[low : low + LIMIT], partial(update_each, db, "data"))
    return Annotated(changed, tuple(id for id in values if id not in of))


def check_source(source: object) -> None:
    """Refuses what does not say who annotates."""
    if not isinstance(source, str) or not source or len(source) > _LONGEST_SOURCE:
        raise QueryError(
            f'source= says who annotates, such as "model:cnn-1@400": a string of 1 to {_LONGEST_SOURCE} characters;'
            f" found {source!r:.80}"
        )


def check_ids(values: object) -> None:
    """Refuses what is not a dict by `_id`."""
    if not isinstance(values, Mapping):
        raise QueryError(f'annotate takes a dict such as {{id: {{"label": 2}}}}; found {type(values).__name__}')
    wrong = next((id for id in values if not isinstance(id, ObjectId)), None)
    if wrong is not None:
        raise QueryError(f"entities are named by their _id, a bson.ObjectId; found {wrong!r}")


def _datasets(db: TensorDB, ids: Sequence[ObjectId]) -> dict[ObjectId, str]:
    """The dataset of each sample that exists."""
    found: dict[ObjectId, str] = {}
    for low in range(0, len(ids), _CHUNK):
        chosen = {"_id": {"$in": list(ids[low : low + _CHUNK])}, "_tdb.p": db.project}
        found.update((doc["_id"], doc["dataset"]) for doc in db._mongo()["data"].find(chosen, {"dataset": 1}))
    return found


def _texts(of: Mapping[ObjectId, str], updates: Sequence[Update]) -> dict[tuple[str, str, str], ObjectId]:
    """The texts that samples are given, to be searched."""
    return {
        (of[filter["_id"]], field, value): filter["_id"]
        for filter, update in updates
        for field, value in update.get("$set", {}).items()
        if type(value) is str and "." not in field
    }


def _updates(
    db: TensorDB,
    of: Mapping[ObjectId, str],
    values: Mapping[ObjectId, Mapping[str, Any]],
    by: Mapping[str, Any],
    names: Sequence[str],
) -> list[Update]:
    """The updates to send, once all values have been found to fit; fields that are new go into the schemas."""
    schemas = db._schemas(names)
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
        updates.append(({"_id": id, "_tdb.p": db.project}, update))
    for dataset, fields in added.items():
        evolve(db, dataset, fields)
    return updates
