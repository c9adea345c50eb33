"""Export samples to files: what is begun is taken up again, and what is there under its name is complete."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import hashlib
import importlib
import itertools
import json
import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensordb_data.common.folder_names import folder_fault
from tensordb_data.common.sizes import parse_size
from tensordb_data.common.system.progress import Progress, showing
from tensordb_data.errors import QueryError, StorageError, TensorDBError
from tensordb_data.export.formats.base import Format, ShardWriter, too_large
from tensordb_data.export.output import Entry, make_durable, write_file
from tensordb_data.export.plan import DEFAULT_SPLIT, Plan, contents_of, read_plan
from tensordb_data.export.report import ExportReport
from tensordb_data.export.rows import check_data
from tensordb_data.export.work import FORMAT, MANIFEST, WorkFolder, check_target, read_manifest
from tensordb_data.warehouse.bound_query import BoundQuery

log = logging.getLogger("tensordb_data.export")

FORMATS = {
    "parquet": "parquet:Parquet",
    "jsonl": "jsonl:Jsonl",
    "folder": "folder:Folder",
    "webdataset": "webdataset:WebDataset",
    "mds": "mds:Mds",
    "coco": "coco:Coco",
}
_VERSION = 1
_TELL = 64
"""Samples after which progress is told."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The options of `Selection.export`."""

    format: str = "parquet"
    fields: Sequence[str] | None = None
    shard_bytes: int | str | None = None
    split: str | None = DEFAULT_SPLIT
    overwrite: bool = False
    nan: bool = False
    progress: bool | Progress[ExportReport] | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise QueryError(f"format is one of {', '.join(FORMATS)}; found {self.format!r}")
        if self.split is not None and (not isinstance(self.split, str) or not self.split):
            raise QueryError(f"split is the name of a field, or None; found {self.split!r}")

    @property
    def limit(self) -> int | None:
        """Bytes of a shard; None for what suits the format."""
        return None if self.shard_bytes is None else parse_size(self.shard_bytes, "shard_bytes")


def export(bound: BoundQuery, path: str | os.PathLike[str], options: ExportOptions) -> ExportReport:
    """See `Selection.export`."""
    check_data(bound, "an export")
    if (fault := folder_fault(os.fspath(path)) if isinstance(path, str) else None) is not None:
        raise QueryError(f"path {path!r}: {fault}")
    target = Path(os.path.abspath(os.path.expanduser(path)))
    if not target.name:
        raise QueryError(f"path: expected the name of a new folder, found {str(target)!r}")
    began = time.monotonic()
    contents = contents_of(bound, options.fields, options.nan)
    module, _, name = FORMATS[options.format].partition(":")
    kind = getattr(importlib.import_module(f"tensordb_data.export.formats.{module}"), name)
    format: Format = kind(contents, options.limit)
    report = ExportReport(str(target), options.format)
    with (
        showing(options.progress) as show,
        _reported(target),
        contextlib.closing(WorkFolder(target)) as work,
    ):
        try:
            _Export(bound, format, options, work, report, show).run()
        except BaseException:
            if work.is_mine and not work.shards:  # nothing that a later call could go on with
                with contextlib.suppress(OSError):
                    work.discard()
            raise
    report.seconds = time.monotonic() - began
    return report


@contextlib.contextmanager
def _reported(target: Path) -> Iterator[None]:
    try:
        yield
    except TensorDBError:
        raise
    except OSError as error:
        raise StorageError(
            f"cannot write {error.filename or target}: {error.strerror or error}; what is complete is kept beside it: "
            "make the same call again when this is mended"
        ) from error


class _Export:
    """One call."""

    def __init__(
        self,
        bound: BoundQuery,
        format: Format,
        options: ExportOptions,
        work: WorkFolder,
        report: ExportReport,
        show: Progress[ExportReport],
    ) -> None:
        self._bound, self._format, self._options = bound, format, options
        self._work, self._report, self._show = work, report, show

    def run(self) -> None:
        """Write what is not written yet, and publish it."""
        work, format = self._work, self._format
        if self._was_published():
            return
        check_target(work.target, self._options.overwrite)
        before = self._earlier()
        work.plan.mkdir(exist_ok=True)
        plan = read_plan(self._bound, format.contents, self._options.split, work.plan, format.checker)
        if before is not None and before.get("digest") == plan.digest:
            format.undo_finish(work)
            work.resume()
        else:
            if before is not None:
                self._tell_restart("samples have changed since the call that was interrupted")
            work.begin({"call": self._call, "digest": plan.digest, "state": plan.state})
        format.begin(plan, work)
        self._report.count = plan.count
        self._report.resumed = sum(shard.rows for shard in work.shards)
        self._write(plan)
        entries = format.finish(work)
        self._complete(plan, entries)
        work.publish(self._options.overwrite)
        self._summarize(plan.count, {split.name: split.count for split in plan.splits} if plan.divided else {}, entries)

    def _was_published(self) -> bool:
        """Whether an earlier call of this kind was killed after it had published, so that only its work folder is left.

        If it was a call of another kind, the folder is emptied.
        """
        state, found = self._work.state() or {}, read_manifest(self._work.target)
        if found is None or state.get("id") is None or state["id"] != found.get("id"):
            return False
        if state.get("call") != self._call:
            self._work.empty()
            return False
        self._work.discard()
        files = [Entry(**entry) for entry in found["files"]]
        self._summarize(found["count"], found["splits"], files)
        self._report.resumed = self._report.count
        return True

    def _summarize(self, count: int, splits: Mapping[str, int], files: Sequence[Entry]) -> None:
        report = self._report
        report.count, report.splits, report.files = count, dict(splits), len(files)
        report.bytes = sum(entry.bytes for entry in files)

    @property
    def _call(self) -> dict[str, Any]:
        """What makes a call the same as an earlier one."""
        warehouse, options = self._bound.warehouse, self._options
        return {
            "version": _VERSION,
            "warehouse": hashlib.sha256(str(warehouse).encode()).hexdigest()[:16],
            "project": warehouse.project,
            "query": self._bound.query.to_json(),
            "format": options.format,
            "fields": None if options.fields is None else list(options.fields),
            "shard_bytes": self._format.shard_bytes,
            "split": options.split,
            "nan": options.nan,
        }

    def _earlier(self) -> dict[str, Any] | None:
        """What the same call has left behind when it was interrupted.

        Raises:
            StorageError: Another call has left something behind, and it is not to be overwritten.
        """
        before = self._work.state()
        if before is None or before.get("call") == self._call:
            return before
        if not self._options.overwrite:
            found = before.get("call")
            call: dict[str, Any] = found if isinstance(found, dict) else {}
            raise StorageError(
                f"{self._work.folder} holds what another call has not finished, format {call.get('format')!r} of "
                f"{call.get('query', '')!s:.200}: make that call again, or remove the folder, or say overwrite=True"
            )
        self._tell_restart("another call had not finished")
        return None

    def _tell_restart(self, why: str) -> None:
        self._report.restarted = why
        log.warning("the export to %s begins anew: %s", self._work.target, why)

    def _write(self, plan: Plan) -> None:
        shards = self._work.shards
        for position, split in enumerate(plan.splits):
            done = [shard for shard in shards if shard.split == position]
            rows = sum(shard.rows for shard in done)
            first = sum(shard.rows for shard in shards)
            if rows < split.count or (not done and self._format.has_empty_shards):
                self._write_split(plan, position, rows, len(done), first)

    def _write_split(self, plan: Plan, position: int, done: int, number: int, first: int) -> None:
        split, format, work = plan.splits[position], self._format, self._work
        writer: ShardWriter | None = None
        try:
            for row in itertools.chain.from_iterable(plan.rows(split, done)):
                if writer is None:
                    writer = format.open(work, split, number, first)
                if not writer.add(row):
                    self._finish(writer, position)
                    number, first = number + 1, first + writer.rows
                    writer = format.open(work, split, number, first)
                    if not writer.add(row):
                        raise too_large(row, f"it does not fit into a file of {format.shard_bytes:,} bytes")
                if writer.rows % _TELL == 0:
                    self._tell(writer.rows)
            if writer is None:
                writer = format.open(work, split, number, first)
            self._finish(writer, position)
            writer = None
        finally:
            if writer is not None:
                writer.abort()

    def _finish(self, writer: ShardWriter, position: int) -> None:
        self._work.add(writer.close(position))
        self._tell(0)

    def _tell(self, rows: int) -> None:
        done = sum(shard.rows for shard in self._work.shards) + rows
        self._show(done, self._report.count, self._report)

    def _complete(self, plan: Plan, entries: Sequence[Entry]) -> None:
        """Write the manifest, after everything else."""
        work, id = self._work, uuid.uuid4().hex
        doc = {
            "format": FORMAT,
            "version": _VERSION,
            "id": id,
            "layout": self._options.format,
            "made": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
            "project": self._bound.warehouse.project,
            "query": json.loads(self._bound.query.to_json()),
            "state": plan.state,
            "count": plan.count,
            "splits": {split.name: split.count for split in plan.splits} if plan.divided else {},
            "fields": {name: field.to_doc() for name, field in plan.contents.fields.items()},
            "files": [dataclasses.asdict(entry) for entry in sorted(entries, key=lambda entry: entry.path)],
        }
        (work.files / MANIFEST).unlink(missing_ok=True)
        write_file(work.files, MANIFEST, json.dumps(doc, ensure_ascii=False, indent=1).encode())
        make_durable(work.files, [MANIFEST])
        work.write_state({**(work.state() or {}), "id": id})
