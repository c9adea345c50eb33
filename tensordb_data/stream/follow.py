"""Follow: what exists, then whatever is committed from now on, in the order of commits, each sample once.

The sequence numbers of a dataset are given in the order of its commits, so "behind the last one delivered" loses
nothing, whatever the number of writers. A change stream on the counters only says when to look: that it may break, lag
or begin anew costs time, never a sample.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pymongo.errors import PyMongoError

from tensordb_data.errors import StateError, UnsupportedError
from tensordb_data.stream.block import Layouts
from tensordb_data.stream.cursor import Pages
from tensordb_data.stream.source import Source
from tensordb_data.stream.stats import Stats

if TYPE_CHECKING:
    from tensordb_data.warehouse import TensorDB

Followed = dict[str, int]
"""Dataset name to the sequence number of the last sample delivered."""

_LINGER = 0.05
"""Seconds that a batch which is not full waits for more samples."""
_BUSY = 0.5
"""Seconds after the last commit in which the counters are looked at, before a change stream is opened."""
_LOOK, _SHARE = 0.01, 10
"""Seconds between two looks, and how many times as long as a look takes."""
_UNKNOWN = float("inf")


class Wakeups:
    """Waits for commits in a project.

    While they keep coming the counters are looked at: a change stream would cost the server much more, since it takes
    every transaction apart. It is opened when they cease.
    """

    def __init__(self, db: TensorDB) -> None:
        if not db._full:
            raise UnsupportedError("follow=True needs a real server: mongomock has no change streams")
        self._db = db
        self._changes: Any = None

    def __enter__(self) -> Wakeups:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def wait(self, done: Followed, new: Callable[[], int], busy: bool) -> None:
        """Return when there is a commit behind `done`, after about a second, or earlier if there is doubt.

        Args:
            done: how far the datasets were followed.
            new: looks at the counters, and says how many samples are behind `done`.
            busy: whether there were any just now.
        """
        if busy:
            self._close()
            until = time.monotonic() + _BUSY
            while (began := time.monotonic()) < until:
                if new():
                    return
                time.sleep(max(_LOOK, _SHARE * (time.monotonic() - began)))
        try:
            if self._changes is None or not self._changes.alive:
                self._open()
                return
            while (change := self._changes.try_next()) is not None:
                fields = change.get("updateDescription", {}).get("updatedFields", {})
                if not fields.get("seq", _UNKNOWN) <= done.get(change["documentKey"]["_id"]["d"], 0):
                    return
        except PyMongoError:
            self._close()
            time.sleep(0.1)

    def _open(self) -> None:
        self._close()
        only: list[dict[str, Any]] = [
            {"$match": {"documentKey._id.p": self._db.project}},
            {"$project": {"documentKey": 1, "updateDescription.updatedFields.seq": 1}},
        ]
        self._changes = self._db._mongo()["datasets"].watch(only, max_await_time_ms=1000)

    def _close(self) -> None:
        if self._changes is not None:
            try:
                self._changes.close()
            except PyMongoError:
                pass
            self._changes = None


Page = tuple[Layouts, str, list[dict[str, Any]], Followed]
"""Documents of one dataset, and how far every dataset had been followed before them."""


def follow(
    source: Source, followed: Followed, rows: int, enough: int, ended: Callable[[], bool], stats: Stats
) -> Iterator[Page | None]:
    """Pages of at most `rows` documents, without end; `None` where it will now wait.

    Args:
        source: of the stream.
        followed: what was delivered before.
        rows: of a page.
        enough: samples that are worth being read without a wait for more.
        ended: asked about once a second, and ends the pages when it says so.
        stats: gets the times of reading and of waiting.

    Raises:
        StateError: a dataset has fewer samples than were delivered: it was dropped.
    """
    done = dict(followed)
    with Wakeups(source.db) as wakeups:
        while not ended():
            busy = False
            with stats.ahead("cursor"):
                versions = _versions(source, done)
                layouts = source.layouts(versions)
            for dataset, pair in sorted(versions.items()):
                start = done.get(dataset, 0)
                if pair[0] <= start:
                    continue
                pages = iter(Pages(source.selection, layouts, {dataset: pair}, rows, (dataset, start)))
                busy = True
                while True:
                    with stats.ahead("cursor"):
                        page = next(pages, None)
                    if page is None:
                        break
                    docs = page[0]
                    yield layouts, dataset, docs, dict(done)
                    done[dataset] = docs[-1]["_tdb"]["s"]
                done[dataset] = pair[0]
            yield None
            with stats.ahead("commits"):
                wakeups.wait(done, lambda: _new(source, done), busy)
                until = time.monotonic() + _LINGER
                while 0 < _new(source, done) < enough and time.monotonic() < until:
                    time.sleep(0.005)


def _versions(source: Source, done: Followed) -> dict[str, tuple[int, int]]:
    versions = dict(source.versions())
    for dataset, sequence in done.items():
        now = versions.get(dataset, (0, 0))[0]
        if now < sequence:
            raise StateError(
                f"dataset {dataset!r} was dropped while it was followed: {sequence} samples had been committed to it,"
                f" and now {now}; begin a new stream, without the old state"
            )
    return versions


def _new(source: Source, done: Followed) -> int:
    return sum(max(0, pair[0] - done.get(dataset, 0)) for dataset, pair in source.versions().items())
