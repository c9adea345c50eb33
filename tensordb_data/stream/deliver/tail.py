"""Tail: follows datasets. It yields the samples that exist, then those that are committed, in order, each sample once.

The sequence numbers of a dataset are in the order of its commits. So a query for "after the last delivered one" misses
no sample, for any number of writers. A change stream on the counters only says when to look. If it breaks, lags or
begins anew, this costs time, but never a sample.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pymongo.errors import ConnectionFailure, PyMongoError

from tensordb_data.errors import ConnectError, StateError, UnsupportedError
from tensordb_data.query.datasets import selected_datasets
from tensordb_data.stream.passes.planner import Planner
from tensordb_data.stream.plan.index_reader import IndexReader
from tensordb_data.stream.plan.sample_table import FieldLayout
from tensordb_data.stream.stats import Stats

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

log = logging.getLogger("tensordb_data.stream")

Followed = dict[str, tuple[int, str]]
"""For each dataset, the sequence number of the last delivered sample, and when the dataset was made."""
NEW = (0, "")

_LINGER = 0.05
"""Seconds that a batch waits for more samples if it is not full."""
_BUSY = 0.5
"""For so many seconds after the last commit, the counters are polled. Then a change stream is opened."""
_LOOK, _SHARE = 0.01, 10
"""Seconds between two looks at the counters, and how many times longer than a look this is at least."""
_UNKNOWN = float("inf")
_PATIENCE = 120.0
"""Seconds that a server may be away."""


class CommitWatcher:
    """Waits for commits in a project.

    While commits keep coming, it polls the counters. A change stream would cost the server much more, since it takes
    every transaction apart. So it is opened only when no commits come.
    """

    def __init__(self, warehouse: Warehouse) -> None:
        if not warehouse.index.is_server:
            raise UnsupportedError("follow=True needs a real server: mongomock has no change streams")
        self._warehouse = warehouse
        self._changes: Any = None

    def __enter__(self) -> CommitWatcher:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def wait(self, done: Followed, new: Callable[[], int], busy: bool) -> None:
        """Wait for a commit after `done`, for about a second. It may return earlier without one.

        Args:
            done: how far the datasets were followed.
            new: reads the counters, and returns how many samples there are after `done`.
            busy: whether there were commits just now.
        """
        if busy:
            self._close()
            until = time.monotonic() + _BUSY
            while (began := time.monotonic()) < until:
                if new():
                    return
                # A look can take long, for example when it waits for a new primary.
                time.sleep(min(_BUSY, max(_LOOK, _SHARE * (time.monotonic() - began))))
        try:
            if self._changes is None or not self._changes.alive:
                self._open()
                return
            while (change := self._changes.try_next()) is not None:
                fields = change.get("updateDescription", {}).get("updatedFields", {})
                if not fields.get("seq", _UNKNOWN) <= done.get(change["documentKey"]["_id"]["d"], NEW)[0]:
                    return
        except ConnectionFailure:
            self._close()
            raise
        except PyMongoError:  # the oplog has rolled over, or the collection was replaced: open it again
            self._close()
            time.sleep(0.1)

    def _open(self) -> None:
        self._close()
        only: list[dict[str, Any]] = [
            {"$match": {"documentKey._id.p": self._warehouse.project}},
            {"$project": {"documentKey": 1, "updateDescription.updatedFields.seq": 1}},
        ]
        self._changes = self._warehouse.index["datasets"].watch(only, max_await_time_ms=1000)

    def _close(self) -> None:
        if self._changes is not None:
            try:
                self._changes.close()
            except PyMongoError:
                pass
            self._changes = None


Page = tuple[FieldLayout, str, list[dict[str, Any]], str, Followed]
"""Layout, dataset, documents, when the dataset was made, and how far each dataset had been followed before."""


def follow(
    planner: Planner, followed: Followed, rows: int, enough: int, ended: Callable[[], bool], stats: Stats
) -> Iterator[Page | None]:
    """Yield pages of at most `rows` documents, without end. `None` means that it is about to wait.

    Args:
        planner: of the stream.
        followed: how far the datasets were followed before.
        rows: documents in a page, at most.
        enough: with so many new samples, there is no wait for more.
        ended: whether to end. It is called about once a second.
        stats: gets the times of reading and of waiting.

    Raises:
        StateError: a dataset is not the one that was followed: it was dropped, or the database is an older copy.
        ConnectError: the server was away for two minutes.
    """
    done = dict(followed)
    answered = time.monotonic()
    waits = True
    with CommitWatcher(planner.warehouse) as watcher:
        while not ended():
            try:
                busy = False
                with stats.time_ahead("cursor"):
                    found = _counters(planner, done)
                    new = {name: now for name, now in found.items() if now[0] > done.get(name, NEW)[0]}
                    if waits and (missing := _missing(planner, found)):
                        log.warning("%s; the stream waits for its first samples", missing)
                    waits = False
                    versions = planner.versions() if new or (found and not done) else {}
                    layout = planner.layout(versions) if versions else None
                answered = time.monotonic()
                for dataset, (sequence, born) in sorted(new.items()):
                    if layout is None or dataset not in layout.schemas:
                        done[dataset] = (sequence, born)  # none of its samples matches
                        continue
                    start = done.get(dataset, NEW)[0]
                    busy = True
                    pages = iter(
                        IndexReader(planner.bound_query, layout, {dataset: (sequence, 0)}, rows, (dataset, start))
                    )
                    while (page := _timed(pages, stats)) is not None:
                        yield layout, dataset, page, born, dict(done)
                        done[dataset] = (page[-1]["_tdb"]["s"], born)
                        answered = time.monotonic()
                    done[dataset] = (sequence, born)
                yield None
                answered = time.monotonic()  # how long the loop took says nothing about the server
                with stats.time_ahead("commits"):
                    watcher.wait(done, lambda: _new(planner, done), busy)
                    until = time.monotonic() + _LINGER
                    while 0 < _new(planner, done) < enough and time.monotonic() < until:
                        time.sleep(0.005)
            except ConnectionFailure as error:
                if time.monotonic() - answered > _PATIENCE:
                    raise ConnectError(
                        f"the server that is followed was away for {_PATIENCE:.0f} s: {error}; begin again with the"
                        " state of the stream, nothing is lost"
                    ) from error
                time.sleep(_LOOK)


def _missing(planner: Planner, found: Followed) -> str | None:
    """What a stream is to follow, and is not there yet."""
    named = selected_datasets(planner.spec.query.filter)
    absent = [repr(name) for name in named or () if name not in found]
    if absent:
        return f"dataset {', '.join(absent)} does not exist yet"
    return None if found else f"there is no dataset in project {planner.warehouse.project!r} yet"


def _timed(pages: Iterator[tuple[list[dict[str, Any]], bool]], stats: Stats) -> list[dict[str, Any]] | None:
    with stats.time_ahead("cursor"):
        page = next(pages, None)
    return None if page is None else page[0]


def _counters(planner: Planner, done: Followed) -> Followed:
    """Read the last sequence number of each dataset.

    Raises:
        StateError: A dataset was replaced since it was followed.
    """
    warehouse = planner.warehouse
    named = selected_datasets(planner.spec.query.filter)
    docs = warehouse.datasets.counters().find(warehouse.datasets.filter(named), {"seq": 1, "created": 1})
    counters = {doc["_id"]["d"]: (doc["seq"], str(doc.get("created"))) for doc in docs}
    for dataset, (sequence, born) in done.items():
        now, reborn = counters.get(dataset, (0, born))
        if now < sequence:  # a new primary may not know yet what the majority has
            doc = warehouse.datasets.counters("linearizable").find_one({"_id": warehouse.datasets.id(dataset)})
            now, reborn = (0, born) if doc is None else (doc["seq"], str(doc.get("created")))
            counters[dataset] = (now, reborn)
        if now < sequence or reborn != born:
            what = f"and now {now}" if reborn == born else f"and that which is there now was made {reborn}"
            raise StateError(
                f"dataset {dataset!r} was dropped while it was followed: {sequence} samples had been committed to it,"
                f" {what}; begin a new stream, without the old state"
            )
    return counters


def _new(planner: Planner, done: Followed) -> int:
    return sum(max(0, now - done.get(name, NEW)[0]) for name, (now, _) in _counters(planner, done).items())
