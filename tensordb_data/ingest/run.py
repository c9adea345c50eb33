"""Ingest a source into a dataset. An ingest can be repeated, and one that was killed is taken up by the same call."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

from bson import ObjectId

from tensordb_data.common.options import suggesting
from tensordb_data.common.system.machine import cpus
from tensordb_data.common.system.progress import Progress, showing
from tensordb_data.errors import QueryError, SchemaError
from tensordb_data.ingest.engine.apply import Applier
from tensordb_data.ingest.engine.file_log import FileLog
from tensordb_data.ingest.engine.format1 import may_have_old, old_ids
from tensordb_data.ingest.engine.identify import Identifier, file_number
from tensordb_data.ingest.engine.missing import Missing
from tensordb_data.ingest.engine.place import Place
from tensordb_data.ingest.engine.prepare import Prepared, Preparer
from tensordb_data.ingest.engine.seen import Seen
from tensordb_data.ingest.given import Given
from tensordb_data.ingest.in_place import InPlace, check_local, refused
from tensordb_data.ingest.open import open_source
from tensordb_data.ingest.options import Checks, Columns, IngestOptions, Reading, Rows, fingerprint, group_of
from tensordb_data.ingest.report import Report
from tensordb_data.ingest.source import Chunk, FileInfo
from tensordb_data.samples.arguments import check_dataset_name
from tensordb_data.samples.commit import merge_schema, register
from tensordb_data.schema import Field, infer
from tensordb_data.schema.schema import Schema
from tensordb_data.warehouse.identity import Identities, identity_name

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tensordb_data.ingest.source import Source
    from tensordb_data.warehouse.context import Warehouse

_WORKERS = 8
_HINT = 0.1
"""Share of rows that are new, and of samples that are missing, above which the report speaks of `key=`."""


class HasWarehouse(Protocol):
    """A `TensorDB`."""

    @property
    def warehouse(self) -> Warehouse:
        """Index and blobs."""
        ...


@suggesting(IngestOptions)
def ingest(
    db: HasWarehouse,
    source: Any,
    dataset: str,
    *,
    in_place: bool = False,
    progress: bool | Progress[Report] | None = None,
    dry_run: bool = False,
    **options: Unpack[IngestOptions],
) -> Report:
    """Add the rows of a source to a dataset. `db.data.ingest(source, dataset, ...)` is the same.

    Args:
        db: The warehouse.
        source: A path, glob, list of such or URL; a table in memory; or an iterable of rows.
        dataset: The name of the dataset. It is made if it does not exist.
        in_place: Whether files stay where they are, and samples point into them. What cannot be pointed at is copied.
        progress: True shows a bar. A function is called now and then with the bytes done, the bytes in all, and the
            report so far.
        dry_run: Whether to write nothing, and only report what would be done, and the schema.
        **options: See `Columns`, `Rows`, `Checks` and `Reading`: as groups, or their fields one by one.

    Returns:
        What was added, updated, unchanged and missing, and what could not be read.

    Raises:
        SchemaError: The source is of an unknown kind, or does not fit the dataset or the options.
        IngestError: More failed than `on_error` allows.
    """
    return run_ingest(db.warehouse, source, dataset, progress, dry_run, options, in_place=in_place)


def run_ingest(
    warehouse: Warehouse,
    source: Any,
    dataset: str,
    progress: bool | Progress[Report] | None,
    dry_run: bool,
    options: Mapping[str, Any],
    *,
    in_place: bool = False,
) -> Report:
    """See `ingest`."""
    check_dataset_name(dataset)
    if not isinstance(in_place, bool):
        raise QueryError(f"in_place= is True or False; found {in_place!r:.200}")
    run = _Ingest(warehouse, source, dataset, dry_run, options, in_place)
    with showing(progress, lambda report: report.added + report.updated + report.unchanged) as show:
        return run.run(show)


class _Ingest:
    """One call."""

    def __init__(
        self, warehouse: Warehouse, source: Any, dataset: str, dry_run: bool, options: Mapping[str, Any], in_place: bool
    ) -> None:
        self._warehouse, self._dataset, self._dry, self._in_place = warehouse, dataset, dry_run, in_place
        self._columns, self._rows = group_of(Columns, "columns", options), group_of(Rows, "rows", options)
        self._checks, self._reading = group_of(Checks, "checks", options), group_of(Reading, "reading", options)
        self.report = Report(dataset, dry_run=dry_run, in_place=in_place)
        on_error = self._checks.on_error
        self.report.stop_after(on_error if isinstance(on_error, int) else {"raise": 0}.get(on_error))
        workers = self._reading.workers or min(_WORKERS, cpus())
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="tensordb-ingest")
        self._given = Given(source, self._columns, self._reading, self.report, self._pool, self._labels)
        self._stored: Mapping[str, Field] = warehouse.datasets.schemas([dataset]).get(dataset) or {}
        self._seen = Seen()
        self._counts: dict[str, int] = {}
        """How many rows of a file are in, by its name."""
        self._broken: set[str] = set()
        """Files with rows that have failed. They are read again."""
        self._unstamped: set[str] = set()
        """Files that were read to their ends, and do not tell whether they change."""

    def run(self, show: Progress[Report]) -> Report:
        """Do it."""
        try:
            if self._in_place:
                if not self._given.is_place:
                    raise refused("rows in memory are in no file")
                given = self._given.source
                named = [given] if isinstance(given, (str, os.PathLike)) else list(given)
                more = [one for one in (self._reading.base, self._reading.images) if one is not None]
                asked = [check_local(os.fsdecode(one)) for one in (*named, *more)]
                folders = [check_local(self._given.files.root), *asked[len(named) :]]
                self._given.in_place = InPlace(self._warehouse, folders, self._dry)
            source = open_source(self._given)
            if self._reading.tags and not getattr(source, "has_tags", False):
                raise QueryError(
                    f"tags= takes tags of DICOM files, and {_shown(self._given.source)} is no folder of them"
                )
            if self._in_place and not (getattr(source, "can_refer", False) or self._reading.files):
                raise refused("the blobs of this format do not lie in its files as they are")
            self._unlisted = self.report.failures > 0
            place = Place(self._given, self._warehouse, self._dataset, source)
            self._source_id = self._rows.source_id or place.id
            if self._rows.prune and not self._source_id:
                raise QueryError("prune=True needs source_id= here: samples of which source are to be deleted?")
            self._log = FileLog(self._warehouse, self._dataset, self._source_id, self._fingerprint())
            self._missing = Missing(self._warehouse, self._dataset, self._source_id, self._seen, dry_run=self._dry)
            self._identifier = Identifier(
                Identities(self._warehouse.project, identity_name(self._warehouse, self._dataset)),
                self._rows, self._source_id, place.root, self.report,
            )  # fmt: skip
            self._read(source, show)
            self._end(source)
        finally:
            self._pool.shutdown(cancel_futures=True)
            self.report.end()
        return self.report

    def _fingerprint(self) -> bytes:
        reading = dataclasses.replace(self._reading, workers=None)
        return fingerprint(self._columns, self._rows.key, self._rows.on_change, self._checks.verify, reading)

    def _read(self, source: Source, show: Progress[Report]) -> None:
        """Write the rows of the files that are not in."""
        report = self.report
        todo = [file for file in source.files if not self._log.is_in(file)]
        there = {file.name for file in todo}
        kept = [file for file in source.files if file.name not in there]
        self._identifier.kept = {file_number(file.name) for file in kept}
        report.unchanged += sum(map(self._log.rows_of, kept))
        report.schema = dict(self._stored)
        if not todo:
            return
        preparer = Preparer(self._dataset, self._columns, self._rows, self._checks, self._reading, report, self._pool)
        columns = source.schema(preparer.wanted(self._stored), todo)
        schema = self._schema(preparer.take(columns, self._stored))
        report.schema = dict(schema)
        preparer.use(schema, self._given.base)
        preparer.in_place = self._given.in_place
        self._begin(schema)
        done, total = 0, sum(file.size for file in todo)
        failures = report.failures
        for chunk in source.rows(todo):
            if chunk.file is not None and report.failures > failures:  # as the source has read it
                self._broken.add(chunk.file)
            self._take(preparer, chunk)
            failures = report.failures
            done += chunk.nbytes
            report.nbytes += chunk.nbytes
            show(min(done, total) if total else done, total or done, report)

    def _schema(self, fields: Mapping[str, Field]) -> Schema:
        """The schema of the rows, which fits that of the dataset.

        Raises:
            SchemaError: It does not.
        """
        stored, fixed = self._stored, self._columns.set or {}
        found = {**fields, **{name: stored.get(name) or infer(value) for name, value in fixed.items()}}
        for name, field in stored.items():
            if name not in found and not field.optional:
                raise SchemaError(
                    f"{_shown(self._given.source)} has no field {name!r}, which every sample of dataset"
                    f" {self._dataset!r} has; choose another dataset, or give one value to all samples with set="
                )
        if not found:
            raise SchemaError(f"{_shown(self._given.source)}: expected columns, found none that are taken")
        # A new field is optional if there are samples without it.
        new = {n: dataclasses.replace(f, optional=True) if stored and n not in stored else f for n, f in found.items()}
        known = Schema(stored) if stored else None
        return merge_schema(self._warehouse, self._dataset, known, Schema({**stored, **new}))

    def _begin(self, schema: Schema) -> None:
        warehouse, report = self._warehouse, self.report
        if self._given.in_place is not None:
            self._given.in_place.begin()
        if not self._dry:
            register(warehouse, self._dataset)
            self._log.begin()
        name = identity_name(warehouse, self._dataset)  # a new dataset may have got another one just now
        self._identifier.identities = Identities(warehouse.project, name)
        self._applier = Applier(
            warehouse, self._dataset, schema, self._source_id, self._rows.on_change, report, dry_run=self._dry
        )
        if may_have_old(warehouse, self._dataset, write=not self._dry):
            self._applier.old_ids = old_ids(warehouse.project, name, self._columns.set or {})
        adopted = {"_tdb.p": warehouse.project, "dataset": self._dataset, "_tdb.src.a": {"$exists": True}}
        self._applier.adopted = warehouse.index["data"].find_one(adopted, {"_id": 1}) is not None

    def _labels(self) -> Mapping[str, int]:
        """The labels that classes of the dataset have, by class."""
        if "class" not in self._stored or "label" not in self._stored:
            return {}
        here = {"_tdb.p": self._warehouse.project, "dataset": self._dataset, "class": {"$exists": True}}
        stages = [{"$match": here}, {"$group": {"_id": "$class", "label": {"$first": "$label"}}}]
        found = self._warehouse.index["data"].aggregate(stages, allowDiskUse=True)
        return {doc["_id"]: doc["label"] for doc in found if isinstance(doc["label"], int)}

    # One chunk

    def _take(self, preparer: Preparer, chunk: Chunk) -> None:
        """Write the rows of a chunk, and note the files that end with it."""
        before = self.report.failures
        rows = preparer.prepare(chunk)
        ids: list[ObjectId] = []
        if rows is not None:
            rows, ids = self._identifier.identify(rows, self._applier.stored)
        if chunk.file is not None:
            self._counts[chunk.file] = self._counts.get(chunk.file, 0) + len(ids)
            if self.report.failures > before:
                self._broken.add(chunk.file)
        files = self._ended(chunk, rows)
        enter = self._enter(files) if files and not self._dry else None
        changed = [file.name for file in files if chunk.file is not None and self._log.was_in(file.name)]
        if rows is not None and ids:
            there = self._applier.apply(rows, ids, self._numbers(chunk, rows), None if changed else enter)
            self._seen.add([id.binary for id in there])
        # The rows of a file that are not in it any more are marked before the file is noted as read.
        self._missing.of_files([file_number(name) for name in changed])
        if enter is not None and (changed or not ids):
            self._applier.enter(enter)
        if chunk.file is not None and self.report.failures > before:
            self._broken.add(chunk.file)

    def _ended(self, chunk: Chunk, rows: Prepared | None) -> list[FileInfo]:
        """The files that end with a chunk, and of which nothing has failed."""
        if not self._source_id:
            return []
        if chunk.file is not None:
            whole = [file for file in chunk.done if file.name not in self._broken]
        else:
            good = set() if rows is None else {place.decode() for place in rows.places or ()}
            whole = [file for file in chunk.done if file.name in good]
        self._unstamped.update(file.name for file in whole if file.stamp is None)
        return [file for file in whole if file.stamp is not None]

    def _enter(self, files: Sequence[FileInfo]) -> Callable[[Any], None]:
        """What notes, within a transaction, that files are in, unless a row has been refused meanwhile."""
        failures = self.report.failures

        def enter(session: Any) -> None:
            if self.report.failures == failures:
                self._log.enter(files, self._counts, session)

        return enter

    def _numbers(self, chunk: Chunk, rows: Prepared) -> list[int] | None:
        """The file of each row, as `_tdb.src.f` has it; None if the identity of a row says it."""
        if chunk.file is not None:
            return [file_number(chunk.file)] * len(rows)
        if self._rows.key is None or rows.places is None:
            return None
        return [file_number(place.decode()) for place in rows.places]

    # The end

    def _end(self, source: Source) -> None:
        """Count, mark or delete samples whose rows are gone."""
        # What is read each time has no entry in the log, and its rows were all seen just now.
        always = sorted(self._unstamped - self._broken)
        if not self._source_id or not (self._log or always):
            return
        report, missing = self.report, self._missing
        missing.of_files([file_number(name) for name in always])
        gone = self._log.gone(source.files)
        if gone:
            missing.of_files([file_number(name) for name in gone])
            missing.of_ids([self._identifier.of_place(name.encode()) for name in gone])
            if not self._dry:
                self._log.remove(gone)
        report.missing = missing.count()
        if report.missing and self._rows.prune and self._unlisted:
            report.note("prune: nothing was deleted, because not all of the source could be looked at; see what failed")
        elif report.missing and self._rows.prune and not self._dry:
            report.pruned = missing.delete()
            report.missing -= report.pruned
            self._log.after_deletion()
        rows = report.added + report.unchanged
        if self._rows.key is None and missing.found > _HINT * rows < report.added:
            report.note(
                f"{report.added:,} rows are new and {missing.found:,} samples have lost theirs: if rows were changed,"
                " key= names the column by which a row is known, and they are updates"
            )


def _shown(source: Any) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fsdecode(source)
    listed = isinstance(source, (list, tuple)) and all(isinstance(one, (str, os.PathLike)) for one in source[:3])
    return ", ".join(map(os.fsdecode, source[:3])) if listed else f"the {type(source).__name__}"
