"""The datasets of a project, and how large each of them is."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tensordb_data.common.listing import Listing, Row
from tensordb_data.common.options import nearest
from tensordb_data.common.sizes import show_size
from tensordb_data.errors import NotFoundError, QueryError
from tensordb_data.mongo.retry import read_all, retry_while_unavailable
from tensordb_data.query.query import Query
from tensordb_data.samples.evolve import DatasetSchema
from tensordb_data.schema.schema import stored_schema
from tensordb_data.table.bounded import AtLeast, count_within
from tensordb_data.table.estimate import estimate
from tensordb_data.warehouse.bound_query import BoundQuery

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse
    from tensordb_data.warehouse.documents.samples import DatasetDocument

_SECONDS = 0.5  # to count the samples of one


@dataclass(frozen=True)
class Dataset(Row):
    """What is known of a dataset without reading its samples."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("name", "count", "size", "fields", "created", "changed")
    NUMBERS: ClassVar[frozenset[str]] = frozenset(("count", "size"))

    name: str
    count: int
    """How many samples there are."""
    exact: bool
    """Whether they were counted; otherwise `count` is an estimate."""
    written: int
    """How many were ever written: the sequence number of the newest."""
    nbytes: int
    """Bytes of its segments, those of deleted samples included until a gc. What live writers have put into documents
    counts from `compact` on."""
    segments: int
    """How many segments these are."""
    schema: DatasetSchema | None
    """None if it never had a sample."""
    created: dt.datetime | None
    changed: dt.datetime | None
    """When samples were written, changed or deleted last. None, as for `created`, where another tool has written
    something else."""

    def cells(self) -> tuple[Any, ...]:
        """What a table shows."""
        count = f"{self.count:,}" if self.exact else f"≈ {self.count:,}"
        fields = ", ".join(self.schema or ())
        return self.name, count, show_size(self.nbytes), fields, self.created, self.changed


def list_datasets(warehouse: Warehouse) -> Listing[Dataset]:
    """See `Data.datasets`."""
    docs = read_all(warehouse.index["datasets"].find(warehouse.datasets.filter(None)))
    sizes = _segments(warehouse, None)
    named = sorted((doc for doc in docs if isinstance(doc["_id"].get("d"), str)), key=lambda doc: doc["_id"]["d"])
    found = [_dataset(warehouse, doc, sizes) for doc in named]
    return Listing(found, f"no datasets in project {warehouse.project!r}")


def one_dataset(warehouse: Warehouse, name: str) -> Dataset:
    """See `Data.dataset`."""
    if not isinstance(name, str):
        raise QueryError(f"a dataset has a name; found {name!r:.100}")
    named = {"_id": warehouse.datasets.id(name)}
    doc = retry_while_unavailable(lambda: warehouse.index["datasets"].find_one(named), reads=True)
    if doc is None:
        known = nearest(name, warehouse.datasets.versions())
        raise NotFoundError(f"there is no dataset {name!r} in project {warehouse.project!r}{known}")
    return _dataset(warehouse, doc, _segments(warehouse, name))


def _segments(warehouse: Warehouse, name: str | None) -> dict[str, tuple[int, int]]:
    """Bytes and number of the segments of each dataset, or of one."""
    named = {"p": warehouse.project, "state": "live", **({} if name is None else {"dataset": name})}
    stages: list[dict[str, Any]] = [
        {"$match": named},
        {"$group": {"_id": "$dataset", "bytes": {"$sum": "$bytes"}, "n": {"$sum": 1}}},
    ]
    rows = retry_while_unavailable(lambda: list(warehouse.index["segments"].aggregate(stages)), reads=True)
    return {row["_id"]: (int(row["bytes"]), int(row["n"])) for row in rows}


def _dataset(warehouse: Warehouse, doc: DatasetDocument, sizes: Mapping[str, tuple[int, int]]) -> Dataset:
    name = doc["_id"]["d"]
    bound = BoundQuery(warehouse, Query("data", {"dataset": name}))
    count, exact = count_within(bound, None, _SECONDS if warehouse.index.is_server else None), True
    if isinstance(count, AtLeast):
        about = estimate(bound, 5_000, 0)
        count, exact = about.value, about.exact
    schema = stored_schema(doc.get("schema"))
    nbytes, segments = sizes.get(name, (0, 0))
    return Dataset(
        name, count, exact, _number(doc.get("seq")), nbytes, segments,
        None if schema is None else DatasetSchema(schema, warehouse, name),
        _time(doc.get("created")), _time(doc.get("changed")) or _newest(bound, _time(doc.get("created"))),
    )  # fmt: skip


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _time(value: object) -> dt.datetime | None:
    return value if isinstance(value, dt.datetime) else None


def _newest(bound: BoundQuery, made: dt.datetime | None) -> dt.datetime | None:
    """When the newest sample was added, where no time is noted: of a dataset that version 0.1 has written."""
    by_number = [("dataset", -1), ("_tdb.s", -1)]
    found = retry_while_unavailable(
        lambda: bound.collection.find_one(bound.filter(), {"_id": 1}, sort=by_number), reads=True
    )
    if made is None or found is None or not hasattr(found["_id"], "generation_time"):
        return made
    added: dt.datetime = found["_id"].generation_time
    return max(made, added.replace(tzinfo=made.tzinfo))
