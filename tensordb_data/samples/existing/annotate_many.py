"""Annotate many samples by columns: values that a machine has found, and arrays, which become blobs."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from bson import ObjectId

from tensordb_data.common.chunks import chunks
from tensordb_data.errors import QueryError, SchemaError
from tensordb_data.mongo.retry import read_all
from tensordb_data.samples.columns import encode_columns, is_column, is_one
from tensordb_data.samples.existing.write_columns import NewValues, write_columns
from tensordb_data.samples.inference import first_value
from tensordb_data.samples.tables import as_column
from tensordb_data.samples.update import evolve
from tensordb_data.schema import Field, Scalar, infer
from tensordb_data.schema.missing import is_missing
from tensordb_data.schema.schema import PROVENANCE, Schema, check_field_name
from tensordb_data.search.index import search_index
from tensordb_data.warehouse.annotation import Annotated, check_source

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_CHUNK = 5000


def annotate_many(warehouse: Warehouse, given: Any, columns: Mapping[str, Any], source: str) -> Annotated:
    """See `Data.annotate_many`."""
    check_source(source)
    ids = _ids(given)
    if not columns:
        raise QueryError("annotate_many takes a column for each field, such as annotate_many(_id=ids, label=labels, "
                         "source=...); found none")  # fmt: skip
    _check_lengths(len(ids), columns)
    of = _datasets(warehouse, ids)
    rows: dict[str, list[int]] = {}
    for row, id in enumerate(ids):
        if id in of:
            rows.setdefault(of[id], []).append(row)
    schemas = warehouse.datasets.schemas(sorted(rows))
    values, added = [], {}
    for dataset, mine in rows.items():
        some = columns if len(mine) == len(ids) else {name: _taken(value, mine) for name, value in columns.items()}
        new, one = _fitted(dataset, schemas[dataset], [ids[row] for row in mine], some)
        added[dataset] = new
        values.append(one)
    evolve(warehouse, {dataset: new for dataset, new in added.items() if new})
    _find_texts(warehouse, values)
    by = {"source": source, "at": dt.datetime.now(dt.timezone.utc)}
    changed = write_columns(warehouse, values, "annotate", by)
    return Annotated(changed, tuple(id for id in ids if id not in of))


def _ids(given: Any) -> list[ObjectId]:
    """The ids, of which those in a table are text."""
    if isinstance(given, (str, bytes, Mapping, ObjectId)) or not isinstance(given, Iterable):
        raise QueryError(f"_id is a list of the _ids of samples; found {type(given).__name__}")
    ids = [_id(row, id) for row, id in enumerate(as_column(given))]
    if len(set(ids)) < len(ids):
        seen: set[ObjectId] = set()
        twice = next(id for id in ids if id in seen or seen.add(id))  # type: ignore[func-returns-value]
        raise QueryError(f"_id: sample {twice} is there twice, so it is not clear which values it gets; give it once")
    return ids


def _id(row: int, given: Any) -> ObjectId:
    if isinstance(given, ObjectId):
        return given
    if isinstance(given, str) and len(given) == 24 and ObjectId.is_valid(given):
        return ObjectId(given)
    raise QueryError(f"_id, row {row}: expected a bson.ObjectId or its 24 hexadecimal digits, found {given!r:.100}")


def _check_lengths(n: int, columns: Mapping[str, Any]) -> None:
    for name, column in columns.items():
        if is_one(column):
            continue
        if not is_column(column):
            raise SchemaError(
                f"field {name!r}: expected a column, an array ({n}, ...) or a list of {n} values, found "
                f"{type(column).__name__}; only numbers and strings are repeated"
            )
        if len(column) != n:
            raise SchemaError(f"field {name!r}: expected {n} values, one for each _id, found {len(column)}")


def _datasets(warehouse: Warehouse, ids: Sequence[ObjectId]) -> dict[ObjectId, str]:
    """The dataset of each sample that exists."""
    found: dict[ObjectId, str] = {}
    for some in chunks(ids, _CHUNK):
        mine = {"_id": {"$in": list(some)}, "_tdb.p": warehouse.project}
        docs = read_all(warehouse.index["data"].find(mine, {"dataset": 1}))
        found.update((doc["_id"], doc["dataset"]) for doc in docs)
    known = warehouse.datasets.schemas(sorted(set(found.values())))
    return {id: dataset for id, dataset in found.items() if dataset in known}


def _taken(column: Any, rows: Sequence[int]) -> Any:
    """Some rows of a column."""
    if is_one(column):
        return column
    values = as_column(column)
    return values[np.array(rows)] if hasattr(values, "dtype") else [values[row] for row in rows]


def _fitted(
    dataset: str, stored: Schema, ids: Sequence[ObjectId], columns: Mapping[str, Any]
) -> tuple[dict[str, Field], NewValues]:
    """The fields that the schema gets, and the encoded values."""
    if PROVENANCE in stored:
        raise SchemaError(
            f"dataset {dataset!r} has a field {PROVENANCE!r} of its own, where annotations are noted; write the"
            " samples into a dataset without it"
        )
    new: dict[str, Field] = {}
    fields: dict[str, Field] = {}
    for name, column in columns.items():
        field = stored.get(name)
        if field is None:
            check_field_name(dataset, name)
            try:
                field = new[name] = dataclasses.replace(infer(first_value(column)), optional=True)
            except SchemaError as error:
                raise SchemaError(f"dataset {dataset!r}, field {name!r}: {error}") from None
        elif field.is_blob and not field.optional:
            raise SchemaError(
                f"dataset {dataset!r}, field {name!r}: {field!r} is a blob that every sample has, and such are"
                " immutable; give the values another name, under which they become an optional field"
            )
        fields[name] = field
    n = len(ids)
    given = {name: [None] * n if is_missing(column) else column for name, column in columns.items()}
    encoded = encode_columns(dataset, Schema(fields), n, given)
    return new, NewValues(dataset, Schema({**stored, **new}), ids, encoded)


def _find_texts(warehouse: Warehouse, values: Sequence[NewValues]) -> None:
    """Let a search find the texts among the new values."""
    texts: dict[tuple[str, str, str], ObjectId] = {}
    for some in values:
        for name, column in some.columns.items():
            if isinstance(column.field, Scalar):
                pairs = zip(column.values, some.ids, strict=True)
                texts.update(((some.dataset, name, text), id) for text, id in pairs if type(text) is str)
    if texts:
        search_index(warehouse, "data").add_groups({}, texts)
