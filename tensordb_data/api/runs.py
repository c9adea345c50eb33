"""Runs: `db.runs(...)` lists what is known of each, from its document, its rows and its checkpoints."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tensordb_data.api.logs import LogSelection
from tensordb_data.api.record import LinkedRecord
from tensordb_data.api.selection import Selection
from tensordb_data.common.html import Html, Shown
from tensordb_data.errors import NotFoundError, QueryError
from tensordb_data.feedback.buffer import flush_feedback
from tensordb_data.feedback.store import delete_feedback
from tensordb_data.query.query import Filter, Query, Sort, clean_filter, clean_limit, clean_sort
from tensordb_data.runs.lease import delete_document
from tensordb_data.runs.listing import RunQuery, list_runs
from tensordb_data.table.notebook import runs_html

if TYPE_CHECKING:
    from tensordb_data.api.frozen.parameter_set import ParameterSet
    from tensordb_data.api.protocol import Facade

_ALL_ROWS = {"superseded": {"$in": [None, True]}}


class Run(LinkedRecord):
    """One run as it was when it was listed: a mapping of the fields that filters and sorts of `db.runs` use.

    These are `name`, `tags`, `status`, `config`, `sets` (how many checkpoints it has), `bytes` (of these, each counted
    in full, also where some share what is stored once), `attempts`, `lineage` (of the newest checkpoint), `began`, and
    of the newest attempt `ended`, `host` and `pid`; and `last` and `best` of each metric, over the rows that are not
    superseded and all checkpoints.
    """

    __slots__ = ()

    collection = "runs"

    @property
    def name(self) -> str:
        """Its name."""
        return str(self._doc["name"])

    @property
    def status(self) -> str | None:
        """`"running"`, `"ended"`, `"failed"` or `"lost"`; None for a run that no saver has had, or only one of 0.1."""
        found: str | None = self._doc["status"]
        return found

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that was noted with it."""
        return dict(self._doc["config"])

    @property
    def last(self) -> dict[str, float]:
        """The value of each metric at the highest step."""
        return dict(self._doc["last"])

    @property
    def best(self) -> dict[str, float]:
        """The highest finite value of each metric; the lowest, if the name is that of a loss or an error."""
        return dict(self._doc["best"])

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """Its attempts, the newest last: `id`, `began`, `ended`, `state`, `host`, `pid`, `code`, `after`."""
        return [dict(each) for each in self._doc["attempts"]]

    @property
    def rows(self) -> LogSelection:
        """Its log rows."""
        return LogSelection(self.db, Query("logs", {"run": self.name}))

    @property
    def checkpoints(self) -> Selection[ParameterSet]:
        """Its checkpoints."""
        return Selection(self.db, Query("params", {"run": self.name}))


class RunSelection(Shown):
    """The runs that a query matches. It is lazy: each call reads them as they are then."""

    def __init__(self, db: Facade, filter: Filter | None, sort: Sort | None, limit: int | None) -> None:
        self.db = db
        self.query = RunQuery(clean_filter(filter), clean_sort(sort), clean_limit(limit))

    def __iter__(self) -> Iterator[Run]:
        """Iterate over the runs."""
        return iter(self.all())

    def all(self) -> list[Run]:
        """Every run, as a list."""
        return [Run(self.db, each) for each in list_runs(self.db.warehouse, self.query)]

    def first(self) -> Run:
        """The first run, in the order of the selection.

        Raises:
            NotFoundError: None matches.
        """
        found = self.head(1)
        if not found:
            raise NotFoundError(f"nothing matches {self.query.brief} in project {self.db.project!r}")
        return found[0]

    def one(self) -> Run:
        """The same as `first()`."""
        return self.first()

    def head(self, n: int = 5) -> list[Run]:
        """The first `n` runs, or fewer when there are fewer."""
        limit = n if self.query.limit is None else min(n, self.query.limit)
        return RunSelection(self.db, self.query.filter, self.query.sort, limit).all()

    def count(self) -> int:
        """How many runs match, at most the limit."""
        return len(list_runs(self.db.warehouse, self.query, metrics=False))

    def delete(self, *, all: bool = False) -> int:
        """Delete the matching runs: their log rows, checkpoints, feedback and documents.

        `db.gc()` removes the bytes of the checkpoints later. If this is interrupted, call it again.

        Args:
            all: Needed when the selection has neither filter nor limit.

        Returns:
            How many runs were deleted.

        Raises:
            QueryError: Everything would be deleted, and `all=True` was not said.
            RunHeldError: One of the runs is being saved. Those before it, by name, were deleted.
        """
        if not all and not self.query.filter and self.query.limit is None:
            raise QueryError(f"this would delete every run of project {self.db.project!r}; say delete(all=True) if "
                             "that is meant")  # fmt: skip
        flush_feedback(self.db.warehouse)
        names = [each["name"] for each in list_runs(self.db.warehouse, self.query, metrics=False)]
        for name in names:
            with delete_document(self.db.warehouse, name):
                self.db.logs.find({"run": name, **_ALL_ROWS}).delete()
                self.db.params.find({"run": name}).delete()
                delete_feedback(self.db.warehouse, name)
        return len(names)

    def _html(self) -> Html:
        return runs_html(self.db.warehouse, self.query)

    def __repr__(self) -> str:
        return f"<RunSelection {self.query.brief} of project {self.db.project!r}>"


def as_row(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run as the row of a table."""
    times = {
        name: f"{run[name]:%Y-%m-%d %H:%M:%S}" if isinstance(run[name], dt.datetime) else None
        for name in ("began", "ended")
    }
    shown = {"name": run["name"], "status": run["status"], **times, "attempts": len(run["attempts"])}
    return {**shown, **{name: run[name] for name in ("sets", "config", "last", "best", "tags")}}
