"""What warehouses, collections and Selections show in a notebook: little, and soon."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pymongo
from pymongo.errors import PyMongoError

from tensordb_data.common.bson_values import COLLECTIONS
from tensordb_data.common.html import Html, paragraph, table
from tensordb_data.errors import ConnectError, TimeLimitError
from tensordb_data.logs.arrays import described, is_logged
from tensordb_data.mongo.errors import first_line
from tensordb_data.query.query import Query
from tensordb_data.runs.listing import RunQuery, list_runs
from tensordb_data.samples.sample import Sample
from tensordb_data.schema import Array, Image
from tensordb_data.schema.schema import stored_schema
from tensordb_data.warehouse.bound_query import BoundQuery, reported

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse
    from tensordb_data.warehouse.record import Record

_SECONDS = 1.0
_COUNT_SECONDS = 0.3
ROWS = 5
_COUNTED = 10_000
_DATASETS = 10
_PICTURES = 2
_SIZE = 48
_LATER = ("tags", "lineage", "events", "provenance", "config", "args")


@contextlib.contextmanager
def soon() -> Iterator[None]:
    """Within this block all reads together take at most a second. `Shown` does not wait for a server that is away."""
    try:
        with pymongo.timeout(_SECONDS):
            yield
    except (PyMongoError, ConnectError) as error:
        cause = error if isinstance(error, PyMongoError) else error.__cause__
        if not isinstance(cause, PyMongoError) or not cause.timeout:
            raise
        raise TimeLimitError(f"no answer within {_SECONDS:g} s: {first_line(cause)}") from error


def selection_html(bound: BoundQuery, entities: Sequence[Record]) -> Html:
    """Some entities of a Selection as a table.

    Args:
        bound: The query.
        entities: The first of them, one more than are shown.
    """
    count = f"{len(entities):,}" if len(entities) <= ROWS else _count(bound)
    head = paragraph(f"{count} of {bound.query.brief} of project {bound.warehouse.project!r}")
    return Html(head + entities_html(entities[:ROWS])) if entities else head


def entities_html(entities: Sequence[Record]) -> Html:
    """Entities as rows, with pictures of samples."""
    pictures: list[str] = []
    if isinstance(entities[0], Sample):
        kinds = [(name, kind) for one in entities if isinstance(one, Sample) for name, kind in one.blobs.items()]
        pictures = list(dict.fromkeys(name for name, kind in kinds if isinstance(kind, (Array, Image))))
    keys = list(dict.fromkeys(key for one in entities for key in one))
    keys = [key for key in keys if key not in _LATER] + [key for key in keys if key in _LATER]
    names = ["_id", *pictures, *(key for key in keys if key != "_id" and key not in pictures)]
    shown = [
        [_cell(one, name, with_picture=name in pictures[:_PICTURES]) for name in names] for one in entities
    ]  # fmt: skip
    return table(names, shown)


def _cell(one: Record, name: str, *, with_picture: bool) -> Any:
    if isinstance(one, Sample) and name in one.blobs:
        picture = one.thumbnail_html(name, _SIZE) if with_picture else None
        return repr(one.blobs[name]) if picture is None else picture
    value = one.get(name)
    return described(value) if isinstance(value, dict) and is_logged(value) else value


def _count(bound: BoundQuery) -> str:
    """How many match, as far as that is known soon."""
    limit = min(bound.query.limit or _COUNTED + 1, _COUNTED + 1)
    try:
        with pymongo.timeout(_COUNT_SECONDS):
            found = bound.within(None).replaced(bound.query.replace(limit=limit)).count()
    except PyMongoError:
        return "many"
    return f"{found:,}" if found <= _COUNTED else f"more than {_COUNTED:,}"


def datasets_html(warehouse: Warehouse) -> Html:
    """The first datasets of a project, by name."""
    named = warehouse.datasets.filter(None)
    docs = list(warehouse.index["datasets"].find(named).sort("_id", 1).limit(_DATASETS + 1))
    rows = []
    for doc in docs[:_DATASETS]:
        schema = stored_schema(doc["schema"])
        rows.append([doc["_id"]["d"], f"{doc['seq']:,}", None if schema is None else dict(schema)])
    more = paragraph("and more: db.data.datasets()") if len(docs) > _DATASETS else ""
    if not rows:
        return paragraph(f"no datasets in project {warehouse.project!r}")
    return Html(table(["dataset", "written", "fields"], rows, ["written"]) + more)


def warehouse_html(warehouse: Warehouse) -> Html:
    """A project at a glance."""
    with soon():
        counts = [[name, _count(BoundQuery(warehouse, Query(name)))] for name in COLLECTIONS]
        head = paragraph(str(warehouse))
        return Html(head + table(["collection", "entities"], counts, ["entities"]) + datasets_html(warehouse))


def collection_html(bound: BoundQuery, entities: Sequence[Record]) -> Html:
    """A collection: of samples the datasets, of others the first entities."""
    if bound.query.collection != "data":
        return selection_html(bound, entities)
    head = paragraph(f"samples of project {bound.warehouse.project!r}: {_count(bound)}")
    return Html(head + datasets_html(bound.warehouse))


def first_docs(bound: BoundQuery) -> list[dict[str, Any]]:
    """The documents to show of a query, and one more."""
    limit = min(bound.query.limit or ROWS + 1, ROWS + 1)
    found = bound.within(None).replaced(bound.query.replace(limit=limit))
    with reported(bound.query), contextlib.closing(found.cursor()) as cursor:
        return list(itertools.islice(cursor, ROWS + 1))


def runs_html(warehouse: Warehouse, query: RunQuery) -> Html:
    """Some runs. Metrics are read where filter or sort need them."""
    with soon():
        wanted = RunQuery(query.filter, query.sort, min(query.limit or ROWS + 1, ROWS + 1))
        found = list_runs(warehouse, wanted, metrics=False)
    if not found:
        return paragraph(f"no runs match {query.brief} in project {warehouse.project!r}")
    names = ["name", "status", "began", "ended", "attempts", "sets", "config", "tags", "last", "best"]
    rows = [[len(run[name]) if name == "attempts" else run[name] or None for name in names] for run in found[:ROWS]]
    shown = [i for i, _ in enumerate(names) if any(row[i] is not None for row in rows)]
    more = paragraph("and more: db.runs(...).all()") if len(found) > ROWS else ""
    head = paragraph(f"{query.brief} of project {warehouse.project!r}")
    return Html(head + table([names[i] for i in shown], [[row[i] for i in shown] for row in rows]) + more)
