"""IndexSnapshot: one state of the index, from which a plan is read: the counters, schemas and samples of one instant.

All is read under one snapshot of the server. So it is of one state, however many updates go on meanwhile. If a mutation
of several transactions is open, the reader waits until it ends. If that takes too long, the reader takes a snapshot of
an instant before the mutation. An instant between two mutations will do too, however short it was.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pymongo.errors import OperationFailure

from tensordb_data.errors import BusyError, TensorDBError
from tensordb_data.samples.mutations import end_silent
from tensordb_data.schema.schema import Schema, stored_schema

if TYPE_CHECKING:
    from bson import Timestamp
    from pymongo.client_session import ClientSession

    from tensordb_data.stream.state import Versions
    from tensordb_data.warehouse.context import Warehouse

log = logging.getLogger("tensordb_data.stream")

PATIENCE = 30.0
"""Seconds that a plan waits for open mutations."""

_LOOK = (0.02, 0.5)  # seconds between two looks: the first ones, and the longest
_FIELDS = ("seq", "mut", "del", "schema", "created", "open", "calm", "stamps")
# The server does not keep snapshots for so long; or has none for an instant, because a collection or index was just
# made; or has no snapshots at all.
_NO_SNAPSHOT = {239, 246, 72, 123, 40415}

Doc = Mapping[str, Any]


class DataMoved(Exception):
    """The data has changed while it was read without a snapshot."""


@dataclass(frozen=True)
class Deletions:
    """The deletions that there were at some time."""

    at: float
    """By `time.monotonic`."""
    last: Mapping[str, int]
    """The mutation counter that each dataset had when samples of it were last deleted; 0 for never."""


@dataclass
class IndexSnapshot:
    """One state of some datasets. Whatever else is read of this state is read with its session."""

    warehouse: Warehouse
    docs: Mapping[str, Doc]
    """The documents of the datasets, by name."""
    session: ClientSession | None = None
    """The session of the snapshot; None if the server has no snapshots."""
    stale: str = ""
    """The mutations that took too long, so that the snapshot is of before them. Empty if there are none."""
    at: float = 0.0
    """By `time.monotonic`. It is of no earlier instant, unless it is `stale`."""
    versions: Versions = field(init=False)

    def __post_init__(self) -> None:
        self.versions = {name: (doc["seq"], doc["mut"]) for name, doc in self.docs.items()}

    def schemas(self, names: Sequence[str]) -> dict[str, Schema]:
        """The schemas of those datasets that have one."""
        found = ((name, stored_schema(self.docs[name]["schema"])) for name in names if name in self.docs)
        return {name: schema for name, schema in found if schema is not None}

    def born(self, names: Sequence[str]) -> dict[str, str]:
        """When each dataset was made."""
        return {name: str(self.docs[name].get("created")) for name in names if name in self.docs}

    def deletions(self) -> Deletions:
        """The deletions that this state knows of."""
        return Deletions(self.at, {name: doc.get("del", 0) for name, doc in self.docs.items()})

    def begun(self) -> dict[str, int]:
        """Of each dataset with open mutations, the last number before the oldest of them."""
        return {
            name: min(entry["mut"] for entry in doc["open"]) - 1 for name, doc in self.docs.items() if doc.get("open")
        }

    def is_of(self, versions: Versions) -> bool:
        """Whether the samples up to `versions` are the same as they were at `versions`."""
        now = ((self.versions.get(name, (0, -1)), then) for name, then in versions.items())
        return all(mut == then[1] and seq >= then[0] for (seq, mut), then in now)

    def check(self) -> None:
        """Check, after all has been read, that it is of one state. This matters only without a session.

        Raises:
            DataMoved: It may be of several states.
        """
        if self.session is None and self.warehouse.index.is_server:
            now = _documents(self.warehouse, list(self.docs))
            for name, doc in self.docs.items():
                found = now.get(name)  # None if another tool has removed the dataset
                if found is None or found["mut"] != doc["mut"] or _awaited(found):
                    raise DataMoved


@contextlib.contextmanager
def open_snapshot(
    warehouse: Warehouse, names: Sequence[str] | None, wanted: Versions | None = None, use_snapshot: bool = True
) -> Iterator[IndexSnapshot]:
    """Open a snapshot in which no mutation is open.

    It is of now, if no mutation is open now. Otherwise this waits until the open mutations have ended, for `PATIENCE`
    seconds at most. After that, it is a snapshot of the last instant before these mutations.

    Args:
        warehouse: The warehouse.
        names: The datasets; None for all of the project.
        wanted: The versions that are asked for. If an instant before the open mutations has them, there is no wait.
        use_snapshot: Without one, `IndexSnapshot.check` says afterwards whether it was one state.

    Raises:
        BusyError: The open mutations take too long, and no instant before them can be read any more.
    """
    asked: Timestamp | None = None
    begun = time.monotonic()
    wait, until = _LOOK[0], begun + PATIENCE
    while True:
        with _read_at(warehouse, names, None, use_snapshot) as (now, instant):
            asked = asked or instant
            busy = _busy(now.docs)
            silent = end_silent(warehouse, list(busy), None if names is None else list(now.docs)) if busy else set()
            # A mutation that was ended has raised the counters, so they are read again. A user without the right to
            # write cannot end it.
            if busy and silent and _ended(warehouse, names, silent):
                continue
            open_ = {id: text for id, text in _busy(now.docs, _awaited).items() if id not in silent}
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
                        snapshot.at = begun
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
    """Whether an error says that the server has no snapshot."""
    found = error.__cause__ if isinstance(error, TensorDBError) else error
    return isinstance(found, OperationFailure) and found.code in _NO_SNAPSHOT


def _before(
    opened: contextlib.ExitStack, warehouse: Warehouse, names: Sequence[str] | None, now: IndexSnapshot
) -> tuple[IndexSnapshot, Timestamp | None] | None:
    """Open a snapshot of the last instant before the mutations that are open in `now`, if the server still has it."""
    while True:
        times = [doc["calm"]["at"] for doc in now.docs.values() if _awaited(doc)]
        if not times or None in times:
            return None
        try:
            found = opened.enter_context(_read_at(warehouse, names, min(times), True))
        except OperationFailure as error:
            if not lacks_snapshot(error):
                raise
            return None
        # With several datasets, one may have been calm while another was not. Then go back further.
        if not _busy(found[0].docs, _awaited):
            return found
        now = found[0]


@contextlib.contextmanager
def _read_at(
    warehouse: Warehouse, names: Sequence[str] | None, instant: Timestamp | None, use_snapshot: bool
) -> Iterator[tuple[IndexSnapshot, Timestamp | None]]:
    """Read the datasets at an instant, by default now. Yields the snapshot, and the instant if somebody needs it."""
    asked = time.monotonic()
    if not (warehouse.index.is_server and use_snapshot):
        yield IndexSnapshot(warehouse, _documents(warehouse, names), at=asked), None
        return
    with warehouse.index.database.client.start_session(snapshot=True) as session:
        if instant is not None:  # from now on, the session reads the data of that time
            _instant(warehouse, session, instant)
        named = warehouse.datasets.filter(names)
        found = warehouse.index["datasets"].find(named, dict.fromkeys(_FIELDS, 1), session=session)
        snapshot = IndexSnapshot(warehouse, {doc["_id"]["d"]: doc for doc in found}, session, at=asked)
        yield snapshot, instant or (_instant(warehouse, session) if _busy(snapshot.docs) else None)


def _instant(warehouse: Warehouse, session: ClientSession, at: Timestamp | None = None) -> Timestamp:
    """The time of the data that a session reads. `at` chooses it, if this is the first read of the session."""
    concern: dict[str, Any] = {"level": "snapshot"} if at is None else {"level": "snapshot", "atClusterTime": at}
    command = {"find": "datasets", "filter": {"_id": None}, "limit": 1, "readConcern": concern}
    time_: Timestamp = warehouse.index.database.command(command, session=session)["cursor"]["atClusterTime"]
    return time_


def _documents(warehouse: Warehouse, names: Sequence[str] | None) -> dict[str, Doc]:
    found = warehouse.datasets.counters().find(warehouse.datasets.filter(names), dict.fromkeys(_FIELDS, 1))
    return {doc["_id"]["d"]: doc for doc in found}


def _versions_before(docs: Mapping[str, Doc]) -> Versions:
    calm = {name: doc["calm"] if _awaited(doc) else doc for name, doc in docs.items()}
    return {name: (doc["seq"], doc["mut"]) for name, doc in calm.items()}


def _open(doc: Doc) -> Sequence[Doc]:
    return doc.get("open") or ()


def _awaited(doc: Doc) -> Sequence[Doc]:
    """The open mutations of a dataset for which a plan waits: not compactions, which change no value."""
    return [entry for entry in _open(doc) if entry["kind"] != "compact"]


def _busy(docs: Mapping[str, Doc], which: Callable[[Doc], Sequence[Doc]] = _open) -> dict[Any, str]:
    """Open mutations, with a text that says which one it is and which process makes it."""
    found: dict[Any, str] = {}
    for name, doc in sorted(docs.items()):
        for entry in which(doc):
            found.setdefault(
                entry["id"],
                f"dataset {name!r} is being changed since {entry['since']:%Y-%m-%d %H:%M:%S} UTC: {entry['kind']}"
                f" {entry['id']} of process {entry['pid']} on {entry['host']}",
            )
    return found


def _ended(warehouse: Warehouse, names: Sequence[str] | None, ids: set[Any]) -> bool:
    return not ids & set(_busy(_documents(warehouse, names)))
