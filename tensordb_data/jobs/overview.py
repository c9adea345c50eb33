"""The queue at a glance: jobs by status, and the workers that are alive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from tensordb_data.common.listing import Listing, Row
from tensordb_data.jobs.worker_registry import alive
from tensordb_data.mongo.retry import retry_while_unavailable
from tensordb_data.warehouse.documents.jobs import JobStatus

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse


@dataclass(frozen=True)
class WorkerInfo(Row):
    """A worker that is alive."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("name", "host", "pid", "kinds", "resources", "job", "draining")
    NUMBERS: ClassVar[frozenset[str]] = frozenset(("pid",))

    name: str
    host: str
    pid: int
    kinds: tuple[str, ...] | None
    """The kinds of jobs that it takes; None for all."""
    allow: tuple[str, ...]
    """The modules whose functions it runs."""
    scripts: bool
    """Whether it runs stored scripts."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """What it has."""
    free: Mapping[str, float] = field(default_factory=dict)
    """What of it no job on its host has taken."""
    job: str | None = None
    """The id of the job that it runs; None for none."""
    draining: bool = False
    """Whether it takes no more jobs."""

    def cells(self) -> tuple[Any, ...]:
        """What a table shows."""
        kinds = "all" if self.kinds is None else list(self.kinds)
        resources = {name: f"{amount:g}" for name, amount in self.resources.items()} or None
        return self.name, self.host, self.pid, kinds, resources, self.job, "yes" if self.draining else None


def counts(warehouse: Warehouse) -> dict[str, int]:
    """See `Jobs.counts`."""
    stages: list[dict[str, Any]] = [
        {"$match": {"_tdb.p": warehouse.project}}, {"$group": {"_id": "$status", "n": {"$sum": 1}}},
    ]  # fmt: skip
    rows = retry_while_unavailable(lambda: list(warehouse.index["jobs"].aggregate(stages)), reads=True)
    found = {str(row["_id"]): int(row["n"]) for row in rows}
    known = {status: found.pop(status, 0) for status in get_args(JobStatus)}
    return {**known, **found}


def workers(warehouse: Warehouse) -> Listing[WorkerInfo]:
    """See `Jobs.workers`."""
    found = retry_while_unavailable(lambda: alive(warehouse), reads=True)
    return Listing(filter(None, map(_info, found)), "no worker is alive; start one: tensordb worker --allow mypkg.")


def _info(each: Mapping[str, Any]) -> WorkerInfo | None:
    """None where another tool has written something else."""
    try:
        return WorkerInfo(
            str(each["name"]), str(each["host"]), int(each["pid"]),
            None if each["kinds"] is None else tuple(each["kinds"]), tuple(each["allow"]), bool(each["scripts"]),
            dict(each["has"]), dict(each.get("free", each["has"])), each["job"], bool(each["draining"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError):
        return None
