"""Moment: a state of the data that a plan is read of: the counters, schemas and samples of one instant.

All is read under one snapshot of the server, so that it is of one state however many updates go on meanwhile. A
mutation of several transactions is waited for, if it was open when somebody asked; where it takes too long, the moment
is one before it. It may be one between two mutations, however short that was.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pymongo.errors import OperationFailure

from tensordb_data.errors import BusyError, TensorDBError
from tensordb_data.samples.mutations import end_silent
from tensordb_data.schema.schema import Schema

if TYPE_CHECKING:
    from bson import Timestamp
    from pymongo.client_session import ClientSession

    from tensordb_data.stream.state import Versions
    from tensordb_data.warehouse.context import Warehouse

log = logging.getLogger("tensordb_data.stream")

PATIENCE = 30.0
"""Seconds that a plan waits for mutations that are open."""

_LOOK = (0.02, 0.5)  # seconds between two looks: first, most
_FIELDS = ("seq", "mut", "schema", "created", "open", "calm")
# The server keeps no snapshot of then, has none of now for an instant, since a collection or index was just made, or
# has none at all.
_NO_SNAPSHOT = {239, 246, 72, 123, 40415}

Doc = Mapping[str, Any]


class DataMoved(Exception):
    """The data has changed while it was read without a snapshot."""


@dataclass
class IndexSnapshot:
    """One state of some datasets; what else is read of it is read with its session."""

    warehouse: Warehouse
    docs: Mapping[str, Doc]
    """The documents of the datasets, by name."""
    session: ClientSession | None = None
    """None where the server has no snapshot."""
    stale: str = ""
    """The mutations that it lies before, though they were waited for; none of them if it is empty."""
    versions: Versions = field(init=False)

    def __post_init__(self) -> None:
        self.versions = {name: (doc["seq"], doc["mut"]) for name, doc in self.docs.items()}

    def schemas(self, names: Sequence[str]) -> dict[str, Schema]:
        """The schemas of those datasets that have one."""
        found = ((name, self.docs[name]["schema"]) for name in names if name in self.docs)
        return {name: Schema.from_doc(schema) for name, schema in found if schema is not None}

    def born(self, names: Sequence[str]) -> dict[str, str]:
        """When the datasets were made."""
        return {name: str(self.docs[name].get("created")) for name in names if name in self.docs}

    def is_of(self, versions: Versions) -> bool:
        """Whether the samples up to `versions` are as they were then."""
        now = ((self.versions.get(name, (0, -1)), then) for name, then in versions.items())
        return all(mut == then[1] and seq >= then[0] for (seq, mut), then in now)

    def check(self) -> None:
        """To be called when all has been read.

        Raises:
            Moved: It may not be of one state.
        """
        if self.session is None and self.warehouse.index.is_server:
            now = _documents(self.warehouse, list(self.docs))
            if any(now[name]["mut"] != doc["mut"] or now[name].get("open") for name, doc in self.docs.items()):
                raise DataMoved


@contextlib.contextmanager
def open_snapshot(
    warehouse: Warehouse, names: Sequence[str] | None, wanted: Versions | None = None, use_snapshot: bool = True
) -> Iterator[IndexSnapshot]:
    """A moment at which nothing was open: now, or as soon as what is open now has ended, but for `PATIENCE` seconds at
    most; then the last before that.

    Args:
        warehouse: The warehouse.
        names: The datasets; None for all of the project.
        wanted: The versions that are asked for: a moment before that is of them will do at once.
        snapshot: Without one, `Moment.check` says afterwards whether it was one state.

    Raises:
        BusyError: What is open takes long, and there is no moment before it that could still be read.
    """
    asked: Timestamp | None = None
    wait, until = _LOOK[0], time.monotonic() + PATIENCE
    while True:
        with _read_at(warehouse, names, None, use_snapshot) as (now, instant):
            asked = asked or instant
            busy = _busy(now.docs)
            silent = end_silent(warehouse, list(busy), None if names is None else list(now.docs)) if busy else set()
            # Once ended, the mutation has raised the counters: they are read again, unless this user may not write.
            if busy and silent and _ended(warehouse, names, silent):
                continue
            open_ = {id: text for id, text in busy.items() if id not in silent}
            if not open_:
                yield now
                return
        late = time.monotonic() >= until
        if use_snapshot:
            with contextlib.ExitStack() as opened:
                before = _before(opened, warehouse, names, now)
                if before is not None:
                    snapshot, instant = before
                    newer = asked is not None and instant is not None and instant >= asked
                    if newer or late or (wanted is not None and snapshot.is_of(wanted)):
                        snapshot.stale = "" if newer else "; ".join(open_.values())
                        yield snapshot
                        return
        if late:
            error = BusyError(
                f"{'; '.join(open_.values())}: waited {PATIENCE:g} s for it to end, and the state of the data before it"
                " cannot be read any more: begin again when it has ended. One whose process was killed ends by itself"
            )
            error.before = _versions_before(now.docs)
            raise error
        time.sleep(min(wait, max(0.0, until - time.monotonic())))
        wait = min(_LOOK[1], wait * 2)


def lacks_snapshot(error: Exception) -> bool:
    """Whether an error says that the server has no snapshot to read under."""
    found = error.__cause__ if isinstance(error, TensorDBError) else error
    return isinstance(found, OperationFailure) and found.code in _NO_SNAPSHOT


def _before(
    opened: contextlib.ExitStack, warehouse: Warehouse, names: Sequence[str] | None, now: IndexSnapshot
) -> tuple[IndexSnapshot, Timestamp | None] | None:
    """The last moment before the mutations that are open now, if the server still has it."""
    while True:
        times = [doc["calm"]["at"] for doc in now.docs.values() if doc.get("open")]
        if not times or None in times:
            return None
        try:
            found = opened.enter_context(_read_at(warehouse, names, min(times), True))
        except OperationFailure as error:
            if not lacks_snapshot(error):
                raise
            return None
        # Of several datasets, one may have been calm when another was not: then it was before that.
        if not _busy(found[0].docs):
            return found
        now = found[0]


@contextlib.contextmanager
def _read_at(
    warehouse: Warehouse, names: Sequence[str] | None, instant: Timestamp | None, use_snapshot: bool
) -> Iterator[tuple[IndexSnapshot, Timestamp | None]]:
    """The datasets at an instant, or now; and which instant it is."""
    if not (warehouse.index.is_server and use_snapshot):
        yield IndexSnapshot(warehouse, _documents(warehouse, names)), None
        return
    with warehouse.index.database.client.start_session(snapshot=True) as session:
        if instant is not None:  # all else that the session reads is of that time too
            _instant(warehouse, session, instant)
        found = warehouse.index["datasets"].find(_of(warehouse, names), dict.fromkeys(_FIELDS, 1), session=session)
        snapshot = IndexSnapshot(warehouse, {doc["_id"]["d"]: doc for doc in found}, session)
        yield snapshot, instant or (_instant(warehouse, session) if _busy(snapshot.docs) else None)


def _instant(warehouse: Warehouse, session: ClientSession, at: Timestamp | None = None) -> Timestamp:
    """The time of which a session reads; the first time that it reads, it may be chosen."""
    concern: dict[str, Any] = {"level": "snapshot"} if at is None else {"level": "snapshot", "atClusterTime": at}
    command = {"find": "datasets", "filter": {"_id": None}, "limit": 1, "readConcern": concern}
    time_: Timestamp = warehouse.index.database.command(command, session=session)["cursor"]["atClusterTime"]
    return time_


def _documents(warehouse: Warehouse, names: Sequence[str] | None) -> dict[str, Doc]:
    found = warehouse.datasets.counters().find(_of(warehouse, names), dict.fromkeys(_FIELDS, 1))
    return {doc["_id"]["d"]: doc for doc in found}


def _of(warehouse: Warehouse, names: Sequence[str] | None) -> dict[str, Any]:
    return (
        {"_id.p": warehouse.project}
        if names is None
        else {"_id": {"$in": [{"p": warehouse.project, "d": name} for name in names]}}
    )


def _versions_before(docs: Mapping[str, Doc]) -> Versions:
    calm = {name: doc["calm"] if doc.get("open") else doc for name, doc in docs.items()}
    return {name: (doc["seq"], doc["mut"]) for name, doc in calm.items()}


def _busy(docs: Mapping[str, Doc]) -> dict[Any, str]:
    """The mutations that are open, and who is at it."""
    found: dict[Any, str] = {}
    for name, doc in sorted(docs.items()):
        for entry in doc.get("open") or ():
            found.setdefault(
                entry["id"],
                f"dataset {name!r} is being changed since {entry['since']:%Y-%m-%d %H:%M:%S} UTC: {entry['kind']}"
                f" {entry['id']} of process {entry['pid']} on {entry['host']}",
            )
    return found


def _ended(warehouse: Warehouse, names: Sequence[str] | None, ids: set[Any]) -> bool:
    return not ids & set(_busy(_documents(warehouse, names)))
