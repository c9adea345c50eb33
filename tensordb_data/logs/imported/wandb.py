"""Folders of Weights & Biases, `wandb/`: their files `run-<id>.wandb` are read without its library, and offline.

A file is a log in the layout of LevelDB. After 7 bytes of a head it has blocks of 32 KiB, of pieces of records:

    u32 checksum of type and data | u16 length | u8 type: 1 whole, 2 first, 3 middle, 4 last | data

A record is a message: 2 history | 5 config | 6 files | 7 system metrics | 8 artifact | 17 run | 18 exit
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tensordb_data.common.wire.protobuf import fields, signed
from tensordb_data.errors import CorruptBlobError, QueryError, TensorDBError
from tensordb_data.logs.imported.report import ImportedRuns
from tensordb_data.logs.imported.source import File, Row, SourceRun, digest, opened, walk
from tensordb_data.logs.imported.values import from_json

_HEAD = b":W&B\xe1\xbe\0"
_BLOCK = 32 << 10
_PIECE = struct.Struct("<IHB")
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_MOST_RECORD = 64 << 20
_LOOKED = 100  # records among which that of the run is
_OWN_LINKS = frozenset(("latest-run", "debug.log", "debug-internal.log"))  # that wandb makes, to what is there too
_LEFT_OUT = {6: "files", 8: "artifacts", 9: "folders of TensorBoard", 10: "alerts", 25: "artifacts"}
_OWN = frozenset(("_step", "_timestamp", "_runtime", "_wandb"))

Fields = dict[int, int | memoryview]


def wandb_runs(source: Path, report: ImportedRuns) -> Iterator[SourceRun]:
    """The runs of a folder, or of one file.

    Raises:
        QueryError: There is none.
    """

    def failed(name: str, why: str) -> None:
        if name.rpartition("/")[2] not in _OWN_LINKS:
            report.fail(name, why)

    if source.is_dir():
        files = [file for file in walk(str(source), failed, frozenset(("files", "logs", "tmp")))
                 if file.name.endswith(".wandb")]  # fmt: skip
    else:
        files = [File(str(source), source.name, source.stat().st_size)]
    if not files:
        raise QueryError(f"{source}: expected a folder wandb/ with files run-<id>.wandb, found none. Of runs that are "
                         "only on the server of W&B, there is nothing to read")  # fmt: skip
    known: dict[str, tuple[SourceRun, list[File]]] = {}
    for file in files:
        try:
            first = _about(file)
        except TensorDBError as error:
            report.fail(file.name, str(error))
            continue
        if first.id in known:  # the run was resumed
            known[first.id][1].append(file)
        else:
            known[first.id] = (first, [file])
    for run, some in known.values():
        run.state = digest([(file.name.rpartition("/")[2], file.size) for file in some])
        run.read = functools.partial(_rows, files=some)
        yield run


def _about(file: File) -> SourceRun:
    """The run of a file, as far as its beginning tells."""
    run = SourceRun("", "", "", lambda run: iter(()), file.name, status="lost")
    with opened(file.path) as data:
        for number, record in enumerate(_records(data, lambda: None)):
            parts = _parts(record)
            if 17 in parts:
                _take_run(run, _bytes(parts[17]))
                break
            if number > _LOOKED:
                break
    if not run.id:
        raise CorruptBlobError("expected a run at its beginning, found none")
    return run


def _rows(run: SourceRun, files: list[File]) -> Iterator[Row]:
    for file in files:
        cut = f"{file.name} ends within a record, as it does when its writer is killed: what comes before it is in"
        step = 0
        with opened(file.path) as data:
            try:
                for record in _records(data, functools.partial(run.notes.append, cut)):
                    parts = _parts(record)
                    for number in parts.keys() & _LEFT_OUT.keys():
                        run.leave(_LEFT_OUT[number])
                    if 2 in parts:
                        row = _history(_bytes(parts[2]), step)
                        step = row.step
                        run.spans(row.time)
                        if row.values:
                            yield row
                    elif 7 in parts:
                        yield _stats(_bytes(parts[7]), step)
                    elif 5 in parts:
                        _take_config(run, _bytes(parts[5]))
                    elif 17 in parts:
                        _take_run(run, _bytes(parts[17]))
                    elif 18 in parts:
                        run.status = "failed" if _parts(_bytes(parts[18])).get(1) else "ended"
            except CorruptBlobError as error:
                raise CorruptBlobError(f"{file.name}: {error}") from None


def _take_run(run: SourceRun, data: memoryview) -> None:
    parts = _parts(data)
    run.id = run.id or _text(parts.get(1))
    run.name = _text(parts.get(8)) or run.name or run.id
    run.tags = [_text(value) for number, value in _listed(data) if number == 10] or run.tags
    for number, name in ((2, "entity"), (3, "project"), (6, "group"), (7, "job_type"), (9, "notes"), (12, "sweep"),
                         (13, "host")):  # fmt: skip
        if number in parts:
            run.about[name] = _text(parts[number])
    if 17 in parts:
        run.spans(_timestamp(parts[17]))
    if 4 in parts:
        _take_config(run, _bytes(parts[4]))


def _take_config(run: SourceRun, data: memoryview) -> None:
    for number, item in _listed(data):
        keys, value = _item(item)
        if number == 1 and keys[0] not in _OWN:
            run.config["/".join(keys)] = value
        elif number == 2:
            run.config.pop("/".join(keys), None)


def _history(data: memoryview, before: int) -> Row:
    found: dict[str, Any] = {}
    step: Any = None
    for number, part in _listed(data):
        if number == 1:
            keys, value = _item(part)
            found["/".join(keys)] = value
        elif number == 2:
            step = signed(_int(_parts(_bytes(part)).get(1)))
    step = found.get("_step") if step is None else step
    time = found.get("_timestamp")
    whole = isinstance(step, int) and -(2**63) <= step < 2**63
    return Row(
        step if whole else before + 1,
        {name: value for name, value in found.items() if name not in _OWN},
        float(time) if isinstance(time, (int, float)) and abs(time) < 1e12 else None,
    )


def _stats(data: memoryview, step: int) -> Row:
    found, time = dict[str, Any](), None
    for number, part in _listed(data):
        if number == 2:
            time = _timestamp(part)
        elif number == 3:
            keys, value = _item(part)
            found["/".join(keys)] = value
    return Row(step, found, time, "system")


def _item(data: int | memoryview) -> tuple[list[str], Any]:
    """A key, which may be nested, and its value, which is JSON."""
    parts = _listed(_bytes(data))
    keys = [_text(value) for number, value in parts if number == 2]
    key = "".join(_text(value) for number, value in parts if number == 1)
    text = b"".join(bytes(_bytes(value)) for number, value in parts if number == 16)
    return keys or [key], from_json(text) if text else None


def _parts(data: bytes | memoryview) -> Fields:
    return dict(_listed(data))


def _listed(data: bytes | memoryview) -> list[tuple[int, int | memoryview]]:
    try:
        return list(fields(data))
    except (ValueError, IndexError) as error:
        raise CorruptBlobError(f"expected a record of W&B, found something else: {error}") from None


def _timestamp(data: int | memoryview) -> float:
    parts = _parts(_bytes(data))
    return signed(_int(parts.get(1))) + _int(parts.get(2)) / 1e9


def _int(value: int | memoryview | None) -> int:
    return value if isinstance(value, int) else 0


def _bytes(value: int | memoryview | None) -> memoryview:
    return memoryview(b"") if value is None or isinstance(value, int) else value


def _text(value: int | memoryview | None) -> str:
    return str(_bytes(value), "utf-8", "replace")


def _records(file: BinaryIO, cut: Callable[[], None]) -> Iterator[bytes]:
    """The records of a file.

    Args:
        file: The file.
        cut: Called if the file ends within a record.

    Raises:
        CorruptBlobError: It is damaged, or another file.
    """
    if file.read(len(_HEAD)) != _HEAD:
        raise CorruptBlobError("expected a file of W&B (run-<id>.wandb), found something else")
    at, whole, begun = len(_HEAD), bytearray(), False
    while True:
        left = _BLOCK - at % _BLOCK
        if left < _PIECE.size:
            at += len(file.read(left))
        head = file.read(_PIECE.size)
        if len(head) < _PIECE.size:
            if head or begun:
                cut()
            return
        check, length, kind = _PIECE.unpack(head)
        data = file.read(length)
        if len(data) < length:
            return cut()
        if not any(head):  # reserved, and not written: the machine went down
            return cut()
        if zlib.crc32(data, zlib.crc32(bytes([kind]))) != check:
            raise CorruptBlobError(f"the record at byte {at:,} does not match its checksum")
        if kind not in ((_MIDDLE, _LAST) if begun else (_WHOLE, _FIRST)):
            raise CorruptBlobError(f"the record at byte {at:,} has a piece of the wrong kind, {kind}")
        at += len(head) + length
        whole += data
        if len(whole) > _MOST_RECORD:
            raise CorruptBlobError(f"expected records of at most {_MOST_RECORD:,} bytes, found a larger one")
        begun = kind in (_FIRST, _MIDDLE)
        if not begun:
            yield bytes(whole)
            whole.clear()
