"""Columns straight from the bytes of a server reply, if all its documents have the same form.

Samples of one dataset are written alike, so their projected documents differ only in the bytes of their values. The
first document is the template. It says where each value of fixed size lies. All other bytes must be the same in all
documents. If they are not, the reply goes to the ordinary decoder.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from tensordb_data.blobs.segments.inline import INLINE
from tensordb_data.blobs.segments.references import BlobRefs
from tensordb_data.stream.plan.inline import InlineBlobs
from tensordb_data.stream.plan.sample_table import FieldLayout, SampleTable, objects
from tensordb_data.stream.state import After

Documents = NDArray[np.uint8]

_DOUBLE, _STRING, _DOCUMENT, _ARRAY, _BINARY = 0x01, 0x02, 0x03, 0x04, 0x05
_OBJECT_ID, _BOOL, _INT32, _INT64 = 0x07, 0x08, 0x10, 0x12
_FIXED = {_DOUBLE: (8, "<f8"), _OBJECT_ID: (12, "u1"), _BOOL: (1, "?"), _INT32: (4, "<i4"), _INT64: (8, "<i8")}
_KINDS = {"int": (_INT32, _INT64), "float": (_DOUBLE,), "bool": (_BOOL,)}


@dataclass(frozen=True)
class _Value:
    kind: int
    start: int
    size: int = 0
    """The number of bytes that may differ from document to document."""


def table_from_bson(layout: FieldLayout, reply: bytes) -> tuple[SampleTable, After] | None:
    """Make a table of a server reply, whose documents are projected by `FieldLayout.projection`.

    Returns:
        The table, and where it ends. None if the documents have no common form, or a field that is no value of fixed
        size.
    """
    size = struct.unpack_from("<i", reply)[0]
    if len(reply) % size:
        return None
    values: dict[str, _Value] = {}
    if not _walk(reply, 0, "", values):
        return None
    rows = np.frombuffer(reply, np.uint8).reshape(-1, size)
    same = np.ones(size, np.bool_)
    for value in values.values():
        same[value.start : value.start + value.size] = False
    structure = np.flatnonzero(same)
    # Compare runs of bytes. To pick single columns would copy the reply.
    for run in np.split(structure, np.flatnonzero(np.diff(structure) > 1) + 1):
        low, high = int(run[0]), int(run[-1]) + 1
        if (rows[:, low:high] != rows[0, low:high]).any():
            return None
    return _table(layout, reply, rows, values)


def _table(
    layout: FieldLayout, reply: bytes, rows: Documents, values: Mapping[str, _Value]
) -> tuple[SampleTable, After] | None:
    dataset = values.get("dataset")
    if dataset is None or dataset.kind != _STRING or any(name in ("dataset", "tags") for name in layout.fields):
        return None
    name = _text(reply, dataset)
    refs: dict[str, BlobRefs] = {}
    inline: dict[str, InlineBlobs] = {}
    columns: dict[str, NDArray[Any]] = {}
    for field in layout.fields:
        if layout.is_blob(field):
            path = f"_tdb.b.{field}."
            found = _refs(rows, values, path)
            if found is None:
                return None
            refs[field] = found
            if path + "k" not in values:
                bytes_ = _inline(rows, values, path)
                if bytes_ is None:
                    return None
                inline[field] = bytes_
        elif field == "_id":
            columns[field] = objects([ObjectId(row.tobytes()) for row in _column(rows, values["_id"])])
        else:
            value = values.get(field)
            kind = getattr(layout.schemas[name].get(field), "kind", "")
            if value is not None and value.kind == _STRING and kind == "str":
                # Text is no value of fixed size, so all documents have the same text.
                columns[field] = objects([_text(reply, value)] * len(rows))
                continue
            if value is None or value.kind not in _KINDS.get(kind, ()):
                return None
            column = _column(rows, value)
            columns[field] = column.astype(np.int64) if kind == "int" else column
    ids = np.ascontiguousarray(_column(rows, values["_id"]))
    sequence = _column(rows, values["_tdb.s"]).astype(np.int64)
    after = (name, int(sequence[-1]))
    dataset_ = np.zeros(len(rows), np.uint16)
    return SampleTable(layout, ids, (name,), dataset_, refs, columns, inline, None, sequence), after


def _text(reply: bytes, value: _Value) -> str:
    length = struct.unpack_from("<i", reply, value.start)[0]
    return reply[value.start + 4 : value.start + 3 + length].decode()


def _refs(rows: Documents, values: Mapping[str, _Value], path: str) -> BlobRefs | None:
    segment, offset, length = (values.get(path + part) for part in "kon")
    packed = values.get(path + "z")
    sizes = [value for value in (offset, length) if value is not None]
    if any(value.kind not in _KINDS["int"] for value in sizes) or (packed is not None and packed.kind != _BOOL):
        return None
    compressed = None if packed is None else _column(rows, packed)
    if segment is None and offset is None and length is not None:
        nothing = np.zeros(len(rows), np.int64)
        lengths = _column(rows, length).astype(np.int64)
        return BlobRefs((INLINE,), nothing.astype(np.uint32), nothing, lengths, compressed)
    if segment is None or offset is None or length is None or segment.kind != _OBJECT_ID:
        return None
    ids = _column(rows, segment)
    # Samples of one segment lie together. So an id is looked up only where a run of equal ids begins.
    starts = np.flatnonzero(np.concatenate([[True], (ids[1:] != ids[:-1]).any(axis=1)]))
    numbers: dict[ObjectId, int] = {}
    of_run = [numbers.setdefault(ObjectId(ids[start].tobytes()), len(numbers)) for start in starts]
    runs = np.diff(np.append(starts, len(rows)))
    return BlobRefs(
        tuple(numbers),
        np.repeat(np.array(of_run, np.uint32), runs),
        _column(rows, offset).astype(np.int64),
        _column(rows, length).astype(np.int64),
        compressed,
    )


def _inline(rows: Documents, values: Mapping[str, _Value], path: str) -> InlineBlobs | None:
    data, checksum = values.get(path + "d"), values.get(path + "x")
    if data is None and checksum is None:
        return InlineBlobs()  # the projection leaves the bytes out
    if data is None or checksum is None or data.kind != _BINARY or checksum.kind not in _KINDS["int"]:
        return None
    return InlineBlobs(rows[:, data.start : data.start + data.size].copy(), _column(rows, checksum).astype(np.int64))


def _column(rows: Documents, value: _Value) -> NDArray[Any]:
    size, dtype = _FIXED[value.kind]
    part = np.ascontiguousarray(rows[:, value.start : value.start + size])
    return part if dtype == "u1" else part.view(dtype).reshape(-1)


def _walk(reply: bytes, start: int, path: str, values: dict[str, _Value]) -> bool:
    """Note the place of every value of the document at `start`. Returns False if a type is not known here."""
    end = start + struct.unpack_from("<i", reply, start)[0] - 1
    at = start + 4
    while at < end:
        kind = reply[at]
        stop = reply.index(0, at + 1)
        name = path + reply[at + 1 : stop].decode()
        at = stop + 1
        if kind == _BINARY:
            size = struct.unpack_from("<i", reply, at)[0]
            values[name] = _Value(kind, at + 5, size)
            at += 5 + size
            continue
        values[name] = _Value(kind, at, _FIXED[kind][0] if kind in _FIXED else 0)
        if kind in _FIXED:
            at += _FIXED[kind][0]
        elif kind == _STRING:
            at += 4 + struct.unpack_from("<i", reply, at)[0]
        elif kind in (_DOCUMENT, _ARRAY):
            if not _walk(reply, at, name + ".", values):
                return False
            at += struct.unpack_from("<i", reply, at)[0]
        else:
            return False
    return True
