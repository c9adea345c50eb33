"""What a forget did, and the record of it that stays."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from bson import ObjectId

from tensordb_data.common.html import Report
from tensordb_data.common.listing import Listing, Row
from tensordb_data.mongo.retry import read_all

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse


@dataclass
class Forgotten(Report):
    """What a forget did, or would do in a dry run."""

    samples: int = 0
    """Samples that were forgotten."""
    segments: int = 0
    """Segments that held them, and were removed."""
    moved: int = 0
    """Other samples whose blobs were moved into new segments."""
    changes: int = 0
    """Entries of the log of changes that were blanked."""
    feedback: int = 0
    """Numbers of runs from which they were removed."""
    tombstones: int = 0
    """Lists of deleted samples that do not name them any more."""
    cached: int = 0
    """Files of the cache of this host that were removed."""
    trained_on: list[ObjectId] = field(default_factory=list)
    """The parameter sets that have seen any of them, by `_id`."""
    scored_on: list[ObjectId] = field(default_factory=list)
    """The parameter sets with a metric that was found on any of them, by `_id`."""
    plans: list[ObjectId] = field(default_factory=list)
    """The parameter sets whose stored plan may still have their `_id`s and the index fields of its stream."""
    files: list[str] = field(default_factory=list)
    """Files of samples in place. They were not touched."""
    not_reached: list[str] = field(default_factory=list)
    """What else may still have something of them."""


@dataclass(frozen=True)
class ForgottenRecord(Row):
    """That samples were forgotten; without their ids."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("at", "reason", "count", "done", "who", "trained_on")
    NUMBERS: ClassVar[frozenset[str]] = frozenset(("count",))

    at: dt.datetime
    reason: str
    count: int
    done: bool
    """False if it was stopped: the next forget ends it."""
    user: str | None
    host: str
    trained_on: tuple[ObjectId, ...]
    """The parameter sets that had seen any of the samples."""
    scored_on: tuple[ObjectId, ...]
    """Those with a metric that was found on any of them."""
    plans: tuple[ObjectId, ...]
    """Those whose stored plans may still have something of them."""

    def cells(self) -> tuple[Any, ...]:
        """What a table shows."""
        seen = ", ".join(map(str, self.trained_on)) or None
        return self.at, self.reason, f"{self.count:,}", self.done, f"{self.user}@{self.host}", seen


def list_forgotten(warehouse: Warehouse) -> Listing[ForgottenRecord]:
    """See `Data.forgotten`."""
    found = read_all(warehouse.index["forgotten"].find({"p": warehouse.project}).sort("_id", 1))
    return Listing(
        [
            ForgottenRecord(
                doc["at"], doc["reason"], doc["n"], doc["done"], doc["by"].get("user"), doc["by"].get("host", ""),
                tuple(doc["trained_on"]), tuple(doc["scored_on"]), tuple(doc["plans"]),
            )
            for doc in found
        ]
    )  # fmt: skip
