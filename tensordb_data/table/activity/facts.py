"""A warehouse in a few numbers, each found by short reads: for `tensordb status` and for metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pymongo.errors import PyMongoError

from tensordb_data.errors import ConnectError
from tensordb_data.mongo.errors import first_line
from tensordb_data.mongo.retry import within
from tensordb_data.table.activity.look import Look, look
from tensordb_data.table.activity.values import whole

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_SECONDS = 2.0


@dataclass(frozen=True)
class Facts:
    """What is known of a project, and of the warehouse that it is in."""

    version: str | None
    """Of the MongoDB server."""
    format: int | None
    """Of the warehouse."""
    look: Look
    """What happens just now."""
    nbytes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of live blobs of the project: of samples under `data`, of parameters and architectures under `params`."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """What could not be read in time, and why."""

    @property
    def written(self) -> int:
        """How many samples were ever written to the datasets of the project."""
        return sum(each.written for each in self.look.datasets.values())

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        now = self.look
        return {
            "version": self.version, "format": self.format, "project": now.project, "time": now.time.isoformat(),
            "datasets": len(now.datasets), "written": self.written, "bytes": dict(self.nbytes),
            "open": [vars(each) for each in now.open], "jobs": dict(now.jobs),
            "workers": [each.name for each in now.workers],
            "savers": {name: each.saver for name, each in now.runs.items() if each.saver is not None},
            "saves": [{**vars(each), "evaluators": list(each.evaluators)} for each in now.saves],
            "saving": now.saving, "backups": now.backups, "missing": {**now.missing, **self.missing},
        }  # fmt: skip


def facts(warehouse: Warehouse) -> Facts:
    """Read them; it takes a few seconds at most.

    Raises:
        ConnectError: The server cannot be reached.
        UnsupportedError: This is mongomock.
    """
    now = look(warehouse)
    missing: dict[str, str] = {}
    version: str | None = None
    format: int | None = None
    nbytes: dict[str, int] = {}
    try:
        with within(_SECONDS):
            version = str(warehouse.index.database.command("buildInfo")["version"])
            found = warehouse.index["warehouse"].find_one({"_id": "warehouse"}, {"format": 1}) or {}
            format = found["format"] if isinstance(found.get("format"), int) else None
    except (PyMongoError, ConnectError) as error:
        missing["server"] = warehouse.address.redact(first_line(error))
    sums = {"data": ("segments", "p", "$bytes"), "params": ("tensors", "_id.p", "$n")}
    for name, (collection, project, of) in sums.items():
        stages: list[dict[str, Any]] = [
            {"$match": {project: warehouse.project, "state": "live"}}, {"$group": {"_id": None, "n": {"$sum": of}}},
        ]  # fmt: skip
        try:
            with within(_SECONDS):
                rows = list(warehouse.index[collection].aggregate(stages))
            nbytes[name] = whole(rows[0]["n"]) if rows else 0
        except (PyMongoError, ConnectError) as error:
            missing[f"bytes of {name}"] = warehouse.address.redact(first_line(error))
    return Facts(version, format, now, nbytes, missing)
