"""One look at what happens in a project, by reads of the index that are short however much there is.

What the index cannot tell is not here: a stream in another process writes nothing that says that it runs.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from bson import ObjectId
from pymongo.errors import PyMongoError

from tensordb_data.errors import ConnectError, UnsupportedError
from tensordb_data.jobs.overview import WorkerInfo, counts, workers
from tensordb_data.mongo.errors import first_line
from tensordb_data.mongo.retry import within
from tensordb_data.table.activity.values import age, text, whole

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

T = TypeVar("T")

WINDOW = 10
"""Seconds before a look of which rows and segments are counted."""
_SECONDS = 1.0  # for each part of a look
_ROWS = 20_000  # rows of logs that are counted at most
_MANY = 1_000
_SHOWN = 20
_PASSES = 600  # seconds


@dataclass(frozen=True)
class OpenChange:
    """A change of samples that has begun and not ended."""

    dataset: str
    kind: str
    host: str
    pid: int
    seconds: float | None
    """For how long it has been open."""


@dataclass(frozen=True)
class DatasetLook:
    """One dataset."""

    written: int
    """How many samples were ever written to it."""
    changes: int
    """How many changes of samples it has had."""


@dataclass(frozen=True)
class SegmentLook:
    """The segments of one dataset."""

    nbytes: int = 0
    """Bytes of those that were made within the last `WINDOW` seconds."""
    writing: int = 0
    """How many are being written, or were when their writer was killed."""


@dataclass(frozen=True)
class RunLook:
    """One run that has rows within the last `WINDOW` seconds, or a saver."""

    rows_per_second: float = 0.0
    step: int | None = None
    """The highest step of these rows."""
    saver: str | None = None
    """Who saves it: host and process number."""


@dataclass(frozen=True)
class SaveLook:
    """One of the newest parameter sets."""

    id: str
    run: str | None
    step: int | None
    nbytes: int
    seconds: float | None
    """How old it is."""
    evaluators: tuple[str, ...] = ()
    """Who evaluates it just now."""


@dataclass(frozen=True)
class JobLook:
    """A job that runs."""

    id: str
    kind: str
    worker: str
    progress: float | None
    seconds: float | None
    """For how long it has run."""


@dataclass(frozen=True)
class Look:
    """What the index tells at one moment."""

    project: str
    time: dt.datetime
    """On the clock of the server."""
    at: float
    """On the clock of this process, in seconds."""
    datasets: Mapping[str, DatasetLook] = field(default_factory=dict)
    segments: Mapping[str, SegmentLook] = field(default_factory=dict)
    open: Sequence[OpenChange] = ()
    runs: Mapping[str, RunLook] = field(default_factory=dict)
    saves: Sequence[SaveLook] = ()
    """The newest first."""
    saving: int | None = None
    """How many saves are under way, of all projects."""
    backups: int = 0
    """How many backups are under way."""
    jobs: Mapping[str, int] = field(default_factory=dict)
    """How many there are, by status."""
    running: Sequence[JobLook] = ()
    workers: Sequence[WorkerInfo] = ()
    passes: int | None = None
    """How many passes of streams with several readers were opened in the last ten minutes, of all projects."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """What could not be read, and why."""


def look(warehouse: Warehouse) -> Look:
    """Look at a project. It writes nothing, and takes a few short reads of the index.

    Raises:
        ConnectError: The server cannot be reached.
        UnsupportedError: This is mongomock.
    """
    if not warehouse.index.is_server:
        raise UnsupportedError("mongomock tells no time, so nothing can be said of what happens; use a real server")
    at = time.monotonic()
    try:
        with within(_SECONDS):
            now = warehouse.index.database.command("hello")["localTime"]
    except PyMongoError as error:
        said = warehouse.address.redact(first_line(error))
        raise ConnectError(f"{warehouse.address} does not answer: {said}") from error
    missing: dict[str, str] = {}

    def part(name: str, read: Callable[[Warehouse, dt.datetime], T], nothing: T) -> T:
        try:
            with within(_SECONDS):
                return read(warehouse, now)
        except (PyMongoError, ConnectError) as error:
            missing[name] = warehouse.address.redact(first_line(error))
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
            missing[name] = f"another tool has written something else there: {type(error).__name__}"
        return nothing

    no_datasets: tuple[dict[str, DatasetLook], Sequence[OpenChange]] = ({}, ())
    no_rows: dict[str, tuple[float, int | None]] = {}
    no_savers: dict[str, str] = {}
    no_leases: tuple[int | None, int] = (None, 0)
    found, changes = part("datasets", _datasets, no_datasets)
    if len(found) >= _MANY:
        missing["other datasets"] = f"only {_MANY:,} are looked at"
    rows = part("runs", _rows, no_rows)
    savers = part("savers", _savers, no_savers)
    saving, backups = part("saves under way", _leases, no_leases)
    return Look(
        warehouse.project, now, at, found, part("segments", _segments, {}), changes,
        {name: _run(rows.get(name), savers.get(name)) for name in sorted({*rows, *savers})},
        part("saves", _saves, ()), saving, backups, part("jobs", lambda each, _: counts(each), {}),
        part("running jobs", _running, ()), part("workers", lambda each, _: workers(each), ()),
        part("passes", _passes, None), missing,
    )  # fmt: skip


def _datasets(warehouse: Warehouse, now: dt.datetime) -> tuple[dict[str, DatasetLook], Sequence[OpenChange]]:
    wanted = {"seq": 1, "mut": 1, "open": 1}
    docs = list(warehouse.index["datasets"].find(warehouse.datasets.filter(None), wanted).limit(_MANY))
    named = [(each["_id"]["d"], each) for each in docs if isinstance(each["_id"].get("d"), str)]
    opened = [
        OpenChange(
            name, text(one.get("kind")), text(one.get("host")), whole(one.get("pid")), age(one.get("since"), now)
        )
        for name, each in named
        for one in (each["open"] if isinstance(each.get("open"), list) else ())
        if isinstance(one, dict)
    ]
    found = {name: DatasetLook(whole(each.get("seq")), whole(each.get("mut"))) for name, each in sorted(named)}
    return found, opened


def _segments(warehouse: Warehouse, now: dt.datetime) -> dict[str, SegmentLook]:
    segments, mine = warehouse.index["segments"], {"p": warehouse.project}
    by = {"$group": {"_id": "$dataset", "n": {"$sum": 1}, "bytes": {"$sum": "$bytes"}}}
    new = list(segments.aggregate([{"$match": {"_id": {"$gt": _since(now)}, **mine, "state": "live"}}, by]))
    # First of all by its state: few segments are being written.
    begun = list(segments.aggregate([{"$match": {"state": "writing", **mine}}, by]))
    nbytes = {each["_id"]: whole(each["bytes"]) for each in new if isinstance(each["_id"], str)}
    writing = {each["_id"]: whole(each["n"]) for each in begun if isinstance(each["_id"], str)}
    names = sorted({*nbytes, *writing})
    return {name: SegmentLook(nbytes.get(name, 0), writing.get(name, 0)) for name in names}


def _rows(warehouse: Warehouse, now: dt.datetime) -> dict[str, tuple[float, int | None]]:
    """Rows a second and the highest step, by run."""
    stages: list[dict[str, Any]] = [
        {"$match": {"_id": {"$gt": _since(now)}, "_tdb.p": warehouse.project}}, {"$sort": {"_id": -1}},
        {"$limit": _ROWS},
        {"$group": {"_id": "$run", "n": {"$sum": 1}, "step": {"$max": "$step"}, "first": {"$min": "$_id"}}},
    ]  # fmt: skip
    found = [each for each in warehouse.index["logs"].aggregate(stages) if isinstance(each["_id"], str)]
    seconds = float(WINDOW)
    if sum(each["n"] for each in found) >= _ROWS:  # there are more: these are of less time
        first = min(each["first"].generation_time for each in found)
        seconds = min(seconds, max(1.0, (now.replace(tzinfo=dt.timezone.utc) - first).total_seconds()))
    return {
        each["_id"]: (each["n"] / seconds, each["step"] if isinstance(each["step"], int) else None) for each in found
    }


def _savers(warehouse: Warehouse, now: dt.datetime) -> dict[str, str]:
    """Who saves which run."""
    wanted = {"_tdb.p": warehouse.project, "_tdb.saver.until": {"$gt": now}}
    docs = warehouse.index["runs"].find(wanted, {"name": 1, "_tdb.saver.host": 1, "_tdb.saver.pid": 1}).limit(_MANY)
    named = [(each["name"], each["_tdb"]["saver"]) for each in docs if isinstance(each.get("name"), str)]
    return {name: f"{text(by.get('host'))}:{whole(by.get('pid'))}" for name, by in named if isinstance(by, dict)}


def _run(rows: tuple[float, int | None] | None, saver: str | None) -> RunLook:
    return RunLook(saver=saver) if rows is None else RunLook(*rows, saver)


def _saves(warehouse: Warehouse, now: dt.datetime) -> Sequence[SaveLook]:
    wanted = {"run": 1, "step": 1, "created": 1, "_tdb.bytes": 1, "_tdb.claims": 1}
    newest = warehouse.index["params"].find({"_tdb.p": warehouse.project}, wanted).sort("_id", -1).limit(_SHOWN)
    return [
        SaveLook(
            text(each["_id"]), each["run"] if isinstance(each.get("run"), str) else None,
            each["step"] if isinstance(each.get("step"), int) else None, whole(each["_tdb"].get("bytes")),
            age(each.get("created"), now), _owners(each["_tdb"].get("claims"), now),
        )
        for each in newest
    ]  # fmt: skip


def _owners(claims: object, now: dt.datetime) -> tuple[str, ...]:
    held = claims.values() if isinstance(claims, dict) else ()
    return tuple(
        text(each.get("owner"))
        for each in held
        if isinstance(each, dict) and (left := age(now, each.get("until"))) is not None and left > 0
    )


def _leases(warehouse: Warehouse, now: dt.datetime) -> tuple[int | None, int]:
    held = {"state": "held", "until": {"$gt": now}}
    docs = list(warehouse.index["leases"].find(held, {"backup": 1}).limit(_MANY))
    backups = sum(bool(each.get("backup")) for each in docs)
    return len(docs) - backups, backups


def _running(warehouse: Warehouse, now: dt.datetime) -> Sequence[JobLook]:
    mine = {"_tdb.p": warehouse.project, "status": "running"}
    wanted = {"kind": 1, "worker": 1, "progress": 1, "started": 1}
    docs = warehouse.index["jobs"].find(mine, wanted).sort("_id", 1).limit(_SHOWN)
    return [
        JobLook(
            text(each["_id"]), text(each.get("kind")), text(each.get("worker")),
            float(each["progress"]) if isinstance(each.get("progress"), (int, float)) else None,
            age(each.get("started"), now),
        )
        for each in docs
    ]  # fmt: skip


def _passes(warehouse: Warehouse, now: dt.datetime) -> int | None:
    since = now - dt.timedelta(seconds=_PASSES)
    found = warehouse.index["passes"].count_documents({"at": {"$gt": since}, "state": {"$exists": True}}, limit=_MANY)
    return int(found)


def _since(now: dt.datetime) -> ObjectId:
    """The least id of what was made within the window, by the clock of whoever has made it."""
    return ObjectId.from_datetime(now - dt.timedelta(seconds=WINDOW))
