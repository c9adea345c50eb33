"""Folders of event files of TensorBoard: each folder with such a file is a run, or a kind of rows of one."""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from tensordb_data.common.wire.tfrecord import records
from tensordb_data.errors import CorruptBlobError, QueryError, TensorDBError
from tensordb_data.logs.imported.events import Event, parse_event
from tensordb_data.logs.imported.report import ImportedRuns
from tensordb_data.logs.imported.source import File, Row, SourceRun, digest, opened, walk
from tensordb_data.logs.tensorboard import FILE

_KINDS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test", "eval": "eval",
          "system": "system"}  # fmt: skip
"""Folders within that of a run, and the kinds of their rows."""
_MOST_RECORD = 256 << 20
_MOST_VALUES = 1_000  # in a row

Files = list[tuple[str, File]]
"""Each with the kind of its rows."""


def tensorboard_runs(source: Path, report: ImportedRuns) -> Iterator[SourceRun]:
    """The runs below a folder of logs.

    Raises:
        QueryError: There are no event files.
    """
    folder = source if source.is_dir() else source.parent
    found: dict[str, Files] = {}
    if source.is_dir():
        files = [file for file in walk(str(source), report.fail) if ".tfevents." in file.name.rpartition("/")[2]]
    else:
        files = [File(str(source), source.name, source.stat().st_size)]
    for file in files:
        name, kind = _place(file, folder)
        found.setdefault(name, []).append((kind, file))
    if not found:
        raise QueryError(f"{source}: expected event files of TensorBoard (*.tfevents.*), found none")
    for name, each in found.items():
        where = each[0][1].name
        try:
            state = digest([(file.name.rpartition("/")[2], file.size) for _, file in each])
            id = digest(name.rpartition("/")[2], [_first(each[0][1])])
        except TensorDBError as error:
            report.fail(where, str(error))
            continue
        yield SourceRun(id, name, state, functools.partial(_rows, files=each), where)


def _place(file: File, folder: Path) -> tuple[str, str]:
    """The run of a file, and the kind of its rows."""
    parts = file.name.split("/")[:-1]
    if file.name.endswith(f"/{FILE}") and len(parts) >= 2:  # one of `to_tensorboard`
        return "/".join(map(unquote, parts[:-1])), unquote(parts[-1])
    kind = _KINDS.get(parts[-1].lower()) if parts else None
    if kind is not None:
        parts = parts[:-1]
    return "/".join(parts) or folder.name or "tensorboard", kind or "train"


def _first(file: File) -> bytes:
    """The beginning of a file, as far as it stays when the file grows: its first record."""
    with opened(file.path) as data:
        head = data.read(12)
        length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else 0
        return head + data.read(min(length, 4096))


def _rows(run: SourceRun, files: Files) -> Iterator[Row]:
    for kind, file in files:
        try:
            yield from _rows_of(run, kind, file)
        except CorruptBlobError as error:
            raise CorruptBlobError(f"{file.name}: {error}") from None


def _rows_of(run: SourceRun, kind: str, file: File) -> Iterator[Row]:
    """The rows of a file. What follows each other at the same step is one row."""
    plugins: dict[str, str] = {}
    row: Row | None = None
    with opened(file.path) as data:
        cut = f"{file.name} ends within a record, as it does when its writer is killed: what comes before it is in"
        for record in records(data, file.size, most=_MOST_RECORD, cut=lambda: run.notes.append(cut)):
            event = parse_event(record, plugins)
            _note(run, event)
            if not event.values:
                continue
            if row is not None and (row.step != event.step or event.values.keys() & row.values.keys()
                                    or len(row.values) > _MOST_VALUES):  # fmt: skip
                yield row
                row = None
            if row is None:
                row = Row(event.step, event.values, event.time, kind)
            else:
                row.values.update(event.values)
        if row is not None:
            yield row


def _note(run: SourceRun, event: Event) -> None:
    if event.time is not None and event.time == event.time:
        run.spans(event.time)
    run.left_out.update(event.left_out)
    run.config.update(event.config)
    run.status = event.status or run.status
