"""The bytes of a plan: a checksum, a directory, and the columns.

There are two forms. The one for the disk is mapped into memory as it is. The small one is stored with a checkpoint, or
sent to other ranks. In the small form the bytes of each column are sorted by their significance, as the shuffle filter
of Blosc does (Alted, 2010), and compressed. This works well because neighbours in a plan differ little.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import bson
import numpy as np
import xxhash
import zstandard
from bson import ObjectId
from numpy.typing import NDArray

from tensordb_data.blobs.segments.inline import INLINE
from tensordb_data.blobs.segments.references import BlobRefs
from tensordb_data.common.bson_values import LENIENT
from tensordb_data.common.zstd import MAX_EXPANDED, expand
from tensordb_data.stream.plan.inline import InlineBlobs
from tensordb_data.stream.plan.plan import Plan
from tensordb_data.stream.plan.sample_table import FieldLayout, SampleTable, objects

_MAGIC, _SMALL = b"TDBPLAN2", b"TDBPLANZ"
_HEAD = struct.Struct("<8sQQ")  # magic, length of the directory, xxh3 of all that follows
_ALIGNED = 64
_LEVEL = 1
_DTYPES = {
    "ids": ("|u1",), "dataset": ("<u2",), "segment": ("<u4",), "offset": ("<i8", "<u4"), "length": ("<i8",),
    "compressed": ("|b1",), "value": ("<i8", "<f8", "|b1", "|O"), "chances": ("<f8",),
    "lengths": ("<i8",), "sequence": ("<u4", "<i8"),
}  # fmt: skip
"""What the columns may be, by the first word of their names."""

DAMAGED = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, struct.error,
           bson.errors.BSONError, zstandard.ZstdError)  # fmt: skip
"""The errors of `unpack_plan` for bytes that are no plan."""


def pack_plan(plan: Plan, *, small: bool = False) -> list[bytes | memoryview]:
    """Write a plan as bytes, in several parts."""
    table = plan.table
    directory: dict[str, Any] = {
        "ids": plan.ids,
        "n": len(plan),
        "versions": {name: list(pair) for name, pair in plan.versions.items()},
        "datasets": list(table.datasets),
        "segments": {name: [str(id_) for id_ in refs.segments] for name, refs in table.refs.items()},
        "since": dict(plan.since),
        "columns": {},
    }
    parts: list[bytes | memoryview] = []
    at = 0
    for name, column in _columns(plan, small):
        view = _bytes(column, small)
        directory["columns"][name] = [column.dtype.str, list(column.shape), at, len(view)]
        padding = 0 if small else -len(view) % _ALIGNED
        parts += [view, bytes(padding)]
        at += len(view) + padding
    text = json.dumps(directory).encode()
    text += b" " * (-(_HEAD.size + len(text)) % _ALIGNED)
    digest = xxhash.xxh3_64(text)
    for part in parts:
        digest.update(part)
    return [_HEAD.pack(_SMALL if small else _MAGIC, len(text), digest.intdigest()), text, *parts]


def unpack_plan(content: NDArray[np.uint8], layout: FieldLayout) -> Plan:
    """Read a plan from bytes. The plan refers to them and does not copy them, as far as possible.

    Raises:
        One of DAMAGED: The bytes are no plan, or not a whole one, or lack a field of `layout`.
    """
    magic, length, expected = _HEAD.unpack_from(content.data)
    if magic not in (_MAGIC, _SMALL):
        raise ValueError(f"expected bytes that begin with {_MAGIC!r}, found {magic!r}")
    if (found := xxhash.xxh3_64_intdigest(content[_HEAD.size :].data)) != expected:
        raise ValueError(f"expected the checksum {expected:016x}, found {found:016x}")
    base = _HEAD.size + length
    directory: Mapping[str, Any] = json.loads(content[_HEAD.size : base].tobytes())
    columns, n = directory["columns"], directory["n"]

    def column(name: str, rows: list[int]) -> NDArray[Any]:
        dtype, shape, at, nbytes = columns[name]
        once = shape == [1] and n > 1 and name.startswith("length ")
        if dtype not in _DTYPES[name.split(" ")[0]] or not (shape == rows or once) or min(at, nbytes) < 0:
            raise ValueError(f"expected a column {name!r} of {rows}, found {dtype} of {shape} at {at}")
        found = _column(content[base + at : base + at + nbytes], dtype, shape, magic == _SMALL)
        return np.broadcast_to(found, (n,)) if once else found

    ids = column("ids", [n, 12])  # there are at least so many bytes

    refs, values = {}, {}
    for name in layout.fields:
        if not layout.is_blob(name):
            values[name] = column(f"value {name}", [n])
            continue
        refs[name] = BlobRefs(
            tuple(map(ObjectId, directory["segments"][name])),
            _below(len(directory["segments"][name]), column(f"segment {name}", [n])),
            column(f"offset {name}", [n]),
            column(f"length {name}", [n]),
            column(f"compressed {name}", [n]) if f"compressed {name}" in columns else None,
        )
    datasets = tuple(directory["datasets"])
    if not set(datasets) <= layout.schemas.keys() or (n and not datasets):
        raise ValueError(f"expected samples of {list(layout.schemas)}, found some of {datasets}")
    several = len(datasets) > 1
    dataset = _below(len(datasets), column("dataset", [n])) if several else np.broadcast_to(np.uint16(0), (n,))
    inline = {name: InlineBlobs() for name, found in refs.items() if INLINE in found.segments}
    sequence = column("sequence", [n]) if "sequence" in columns else None
    table = SampleTable(layout, ids, datasets, dataset, refs, values, inline, None, sequence)
    since = {str(name): int(number) for name, number in directory.get("since", {}).items()}
    versions = {name: (int(pair[0]), int(pair[1])) for name, pair in directory["versions"].items()}
    chances = column("chances", [n]) if "chances" in columns else None
    lengths = {name[8:]: column(name, [n]) for name in columns if name.startswith("lengths ")}
    return Plan(table, versions, directory["ids"], chances, lengths, since)


def _columns(plan: Plan, small: bool) -> Iterator[tuple[str, NDArray[Any]]]:
    table = plan.table
    yield "ids", table.ids
    if len(table.datasets) > 1:
        yield "dataset", table.dataset
    if table.sequence is not None and not small:  # a plan that travels is not brought up to date
        yield "sequence", table.sequence
    for name, refs in table.refs.items():
        yield f"segment {name}", refs.segment
        yield f"offset {name}", refs.offset
        yield f"length {name}", refs.length[:1] if refs.length.strides == (0,) else refs.length
        if refs.compressed is not None:
            yield f"compressed {name}", refs.compressed
    for name, column in table.values.items():
        yield f"value {name}", column
    if plan.cumulative_weights is not None:
        yield "chances", plan.cumulative_weights
    for name, lengths in plan.lengths.items():
        yield f"lengths {name}", lengths


def _bytes(column: NDArray[Any], small: bool) -> memoryview:
    if column.dtype == object:
        data = memoryview(bson.encode({"v": column.tolist()}))
    elif small and column.size:
        rows = np.ascontiguousarray(column).reshape(len(column), -1).view(np.uint8)
        data = np.ascontiguousarray(rows.T).reshape(-1).data
    else:
        data = np.ascontiguousarray(column).reshape(-1).view(np.uint8).data
    return memoryview(zstandard.ZstdCompressor(level=_LEVEL).compress(data)) if small else data


def _below(count: int, numbers: NDArray[Any]) -> NDArray[Any]:
    """The numbers, each of which counts in a list of so many."""
    if len(numbers) and int(numbers.max()) >= count:
        raise ValueError(f"expected numbers below {count}, found {int(numbers.max())}")
    return numbers


def _column(data: NDArray[np.uint8], dtype: str, shape: list[int], small: bool) -> NDArray[Any]:
    if small:
        limit = MAX_EXPANDED if dtype == "|O" else math.prod(shape) * np.dtype(dtype).itemsize
        data = np.frombuffer(expand(data.data, limit), np.uint8)
    if dtype == "|O":
        items = bson.decode(data.tobytes(), LENIENT)["v"]
        if len(items) != shape[0]:
            raise ValueError(f"expected {shape[0]} values, found {len(items)}")
        return objects(items)
    if small and data.size:
        data = np.ascontiguousarray(data.reshape(-1, shape[0]).T).reshape(-1)
    return data.view(dtype).reshape(shape)
