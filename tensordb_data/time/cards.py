"""What is known of a frozen set without reading it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from bson import ObjectId

from tensordb_data.common.listing import Listing, Row
from tensordb_data.common.sizes import show_size
from tensordb_data.errors import QueryError
from tensordb_data.mongo.retry import read_all
from tensordb_data.query.query import Query
from tensordb_data.warehouse.record import Record

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse
    from tensordb_data.warehouse.documents.frozen import FrozenSetDocument


@dataclass(frozen=True)
class FrozenCard(Row):
    """What is known of a frozen set: counts, fields, who has frozen it, when, and by which query."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("name", "count", "size", "datasets", "fields", "created", "by", "tags")
    NUMBERS: ClassVar[frozenset[str]] = frozenset(("count", "size"))

    name: str
    count: int
    """How many samples it has."""
    datasets: Mapping[str, int]
    """How many of them were of which dataset, by its name at that time."""
    fields: tuple[str, ...]
    """The fields that it has of them, `tags` and `provenance` among them."""
    created: dt.datetime | None
    user: str
    """Who has frozen it, as the operating system named him."""
    host: str
    """The machine on which this was done."""
    query: Query | None
    """The query that was frozen; None if another tool has written something else there."""
    fingerprint: str
    """A digest, of 32 hexadecimal digits. Two sets with the same one have the same samples with the same values."""
    tags: tuple[str, ...]
    nbytes: int
    """Bytes of what is stored of it, uncompressed, those included that it shares with other sets; without blobs."""
    holes: int = 0
    """How many of the samples that it had were blanked since."""
    id: ObjectId = field(default_factory=ObjectId)
    """Its `_id`."""

    def cells(self) -> tuple[Any, ...]:
        """What a table shows."""
        count = f"{self.count:,}" if not self.holes else f"{self.count:,} + {self.holes:,} holes"
        by = f"{self.user}@{self.host}"
        named, fields, tags = ", ".join(self.datasets), ", ".join(self.fields), ", ".join(self.tags)
        return self.name, count, show_size(self.nbytes), named, fields, self.created, by, tags or None


class FrozenRecord(Record):
    """A frozen set as a search finds it: a mapping of what is known of it."""

    __slots__ = ()

    collection = "frozen"


def card_of(doc: FrozenSetDocument | Mapping[str, Any]) -> FrozenCard:
    """The card of a document. What another tool has changed to something else is left out."""
    found: Mapping[str, Any] = doc  # type: ignore[assignment,unused-ignore]
    by = found.get("by")
    by = by if isinstance(by, Mapping) else {}
    datasets = found.get("datasets")
    datasets = datasets if isinstance(datasets, list) else []
    try:
        query = Query.from_json(found["query"])
    except (QueryError, KeyError, TypeError):
        query = None
    created = found.get("created")
    return FrozenCard(
        str(found.get("name")), _count(found.get("count")),
        {str(one.get("name")): _count(one.get("count")) for one in datasets if isinstance(one, Mapping)},
        _texts(found.get("fields")), created if isinstance(created, dt.datetime) else None,
        str(by.get("user", "")), str(by.get("host", "")), query, str(found.get("fingerprint", "")),
        _texts(found.get("tags")), _count(found.get("bytes")), _count(found.get("holes")), found["_id"],
    )  # fmt: skip


def list_sets(warehouse: Warehouse) -> Listing[FrozenCard]:
    """See `Data.frozen`."""
    found = warehouse.index["frozen"].find({"_tdb.p": warehouse.project}, {"_tdb": 0})
    docs = sorted(read_all(found), key=lambda doc: str(doc["_id"]), reverse=True)
    return Listing(map(card_of, docs), f"no frozen sets in project {warehouse.project!r}")


def _count(value: object) -> int:
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else 0


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()
