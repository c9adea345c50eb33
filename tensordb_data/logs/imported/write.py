"""Write the runs of other trackers: a document and rows each, whole or not at all, and none twice.

    imported: {tracker, id, state, attempt, pending: [...], at, about, rows}     in the document of the run

The rows of a run belong to an attempt. One that is under way is in `pending` until all of its rows are in; whoever
imports the run next removes the rows of those that were interrupted.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import bson
from bson import ObjectId
from pymongo.errors import DuplicateKeyError

from tensordb_data.errors import ClaimLostError, CorruptBlobError, RunHeldError, SchemaError, TensorDBError
from tensordb_data.logs.arrays import Logged, stored
from tensordb_data.logs.ids import IDS
from tensordb_data.logs.imported.report import ImportedRuns
from tensordb_data.logs.imported.source import Row, SourceRun
from tensordb_data.logs.imported.values import Names, clean_text, config, flat, moment
from tensordb_data.logs.insert import RowInserter
from tensordb_data.mongo.heartbeat import keep_renewing
from tensordb_data.runs.documents import LEASE, attempts_of, clean_config, named
from tensordb_data.runs.lease import SECONDS, take_claim

if TYPE_CHECKING:
    from tensordb_data.mongo.claims import Claim
    from tensordb_data.warehouse.context import Warehouse

_BATCH = 1_000  # rows
_BYTES = 8 << 20  # of texts and arrays of rows that are written at once
_ABOUT = 8 << 20  # bytes of all that is known of a run beside its rows
_SEARCHED = 1_000_000  # characters of the longest text that a search finds
_TEXT = 1_000  # characters of a tag, and of what else is known of a run
_TAGS = 100


class RunImporter:
    """Writes runs of one kind of tracker.

    Args:
        warehouse: The warehouse.
        kind: The tracker.
        report: What is done is noted there.
        prefix: Comes before the name of each run.
        tags: Tags of each run.
    """

    def __init__(
        self, warehouse: Warehouse, kind: str, report: ImportedRuns, prefix: str = "", tags: Sequence[str] = ()
    ) -> None:
        self._warehouse, self._kind, self._report = warehouse, kind, report
        self._prefix, self._tags = prefix, tags
        self._runs, self._logs = warehouse.index["runs"], warehouse.index["logs"]

    def bring(self, run: SourceRun) -> None:
        """Write a run, unless it is here already and has not changed. An error of the run is noted in the report."""
        try:
            name = self._document(run)
            claimed = take_claim(self._warehouse, name, (), lambda claimed: claimed)
        except (RunHeldError, SchemaError) as error:
            self._report.fail(run.where or run.name, str(error))
            return
        mine = {"_id": claimed.id, f"{LEASE}.token": claimed.token}
        with keep_renewing(claimed, SECONDS):
            try:
                self._update(run, name, claimed, mine)
            except TensorDBError as error:
                self._undo(name, mine)
                self._report.fail(run.where or run.name, str(error))
            except BaseException:
                self._undo(name, mine)
                raise
        with contextlib.suppress(ClaimLostError):  # it was deleted, say
            claimed.release()

    def _document(self, run: SourceRun) -> str:
        """The name of the run here; its document is made if there is none."""
        of = {"_tdb.p": self._warehouse.project, "imported.tracker": self._kind, "imported.id": run.id}
        known = self._runs.find_one(of, {"name": 1})
        if known is not None:
            return str(known["name"])
        wanted = clean_text(f"{self._prefix}{run.name}")[:_TEXT] or run.id
        for name in (wanted, f"{wanted}-{run.id[:8]}", f"{wanted}-{run.id}"):
            imported = {"tracker": self._kind, "id": run.id, "pending": []}
            made: dict[str, Any] = {"attempts": [], "tags": [], "imported": imported}
            if self._logs.find_one({"_tdb.p": self._warehouse.project, "run": name}, {"_id": 1}) is not None:
                continue
            if self._warehouse.index["params"].find_one({"_tdb.p": self._warehouse.project, "run": name}, {"_id": 1}):
                continue
            try:
                done = self._runs.update_one(named(self._warehouse, name), {"$setOnInsert": made}, upsert=True)
            except DuplicateKeyError:  # somebody else was first
                continue
            if done.upserted_id is not None:
                if name != wanted:
                    run.notes.append(f"run {wanted!r} is called {name!r} here: there is another one of that name")
                return name
        raise SchemaError(f"there are other runs {wanted!r} already: give prefix=")

    def _update(self, run: SourceRun, name: str, claimed: Claim, mine: Mapping[str, Any]) -> None:
        known: Mapping[str, Any] = claimed.document["imported"]
        old = known.get("attempt")
        self._remove(name, known.get("pending") or [])
        if old is not None and known.get("state") == run.state:
            self._report.unchanged += 1
            return
        if any(each["id"] != old for each in attempts_of(claimed.document)):
            raise SchemaError(f"run {name!r} has been continued here since it was imported, and its source has changed"
                              ": give prefix= to import it anew")  # fmt: skip
        attempt = ObjectId()
        self._runs.update_one(mine, {"$push": {"imported.pending": attempt}})
        names = Names()
        tags = self._clean_tags(run)
        count = self._write(run, name, tags, attempt, names)
        self._finish(run, name, attempt, old, count, mine)
        for there, here in names.changed:
            self._report.note(f"metric {there!r:.200} is called {here!r:.200} here")
        for text in run.notes:
            self._report.note(f"{run.where or run.name}: {text}")
        self._report.leave_out(run.left_out)
        self._report.done(name, count)
        if old is None:
            self._report.added += 1
        else:
            self._report.updated += 1

    def _finish(
        self, run: SourceRun, name: str, attempt: ObjectId, old: ObjectId | None, count: int, mine: Mapping[str, Any]
    ) -> None:
        """Let the attempt stand for the run, in one step, and remove the rows of the one before."""
        made: dict[str, Any] = {
            "id": attempt, "code": {}, "began": moment(run.began), "ended": moment(run.ended), "state": run.status,
            "host": run.about.get("host"), "pid": None, "after": None,
        }  # fmt: skip
        imported = {
            "tracker": self._kind, "id": run.id, "state": run.state, "attempt": attempt,
            "pending": [old] if old else [], "at": dt.datetime.now(dt.timezone.utc), "rows": count,
            "about": self._about(run),
        }  # fmt: skip
        change: dict[str, Any] = {"attempts": [made], "tags": self._clean_tags(run), "imported": imported}
        if run.config:
            change["config"] = clean_config(config(run.config))
        size = len(bson.encode(change))
        if size > _ABOUT:
            raise CorruptBlobError(f"expected at most {_ABOUT:,} bytes of configuration and tags, found {size:,}")
        done = self._warehouse.index.write(lambda: self._runs.update_one(mine, {"$set": change}))
        if not done.matched_count:
            raise RunHeldError(f"run {name!r} was deleted, or taken over, while it was imported")
        if old is not None:
            self._remove(name, [old])
            self._runs.update_one(mine, {"$set": {"imported.pending": []}})

    def _write(self, run: SourceRun, name: str, tags: list[str], attempt: ObjectId, names: Names) -> int:
        inserter = RowInserter(self._warehouse, {"run": name, "tags": tags}, {"id": attempt})
        count = 0
        for rows in _batches(run.read(run)):
            documents: list[dict[str, Any]] = []
            for id, row in zip(IDS.take(len(rows)), rows, strict=True):
                document: dict[str, Any] = {"_id": id, "run": name, "tags": tags, "kind": row.kind, "step": row.step}
                for there, value in flat(row.values, run.leave).items():
                    here = names(there)
                    if isinstance(value, Logged):
                        document[here], _ = stored(here, value)
                        continue
                    if isinstance(value, str) and len(value) <= _SEARCHED:
                        inserter.texts[name, here, value] = id
                    document[here] = value
                document["time"] = moment(row.time) or dt.datetime.now(dt.timezone.utc)
                documents.append(document)
            self._warehouse.index.write(functools.partial(inserter.insert, documents))
            if inserter.refused:
                step, why = inserter.refused[0]
                raise CorruptBlobError(f"the row of step {step} cannot be stored: {why}")
            count += len(documents)
        return count

    def _remove(self, name: str, attempts: Iterable[ObjectId]) -> None:
        gone = list(attempts)
        of = {"_tdb.p": self._warehouse.project, "run": name, "_tdb.a": {"$in": gone}}
        if gone:
            self._warehouse.index.write(lambda: self._logs.delete_many(of))

    def _undo(self, name: str, mine: Mapping[str, Any]) -> None:
        """Remove what an import that failed has written; the run as it was imported before stays."""
        document = self._runs.find_one(mine)
        if document is None:
            return
        known = document["imported"]
        self._remove(name, known.get("pending") or [])
        if known.get("attempt") is None and not document["attempts"]:
            self._runs.delete_one(mine)
        else:
            self._runs.update_one(mine, {"$set": {"imported.pending": []}})

    def _clean_tags(self, run: SourceRun) -> list[str]:
        found = [clean_text(tag)[:_TEXT] for tag in [*self._tags, *run.tags]]
        if len(found) > _TAGS:
            run.left_out["tags"] = len(found) - _TAGS
        return [*dict.fromkeys(tag for tag in found if tag)][:_TAGS]

    def _about(self, run: SourceRun) -> dict[str, Any]:
        return {name: text[:_TEXT] if isinstance(text, str) else text for name, text in config(run.about).items()}


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    some: list[Row] = []
    size = 0
    for row in rows:
        some.append(row)
        size += sum(_size(value) for value in row.values.values())
        if len(some) == _BATCH or size > _BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


def _size(value: Any) -> int:
    if isinstance(value, Logged):
        return value.nbytes
    return len(value) if isinstance(value, str) else 100 * len(value) if isinstance(value, (list, dict)) else 8
