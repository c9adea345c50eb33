"""Plans on local disk: read from the database once, then mapped into memory by every process of the host.

A file is named by all that decides its content (query, fields and their codecs, state of the data), written beside its
place and renamed, and checked against its checksum when it is opened. So it is never stale and never half-written,
whoever is killed; a damaged one is read from the database again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bson
import numpy as np
import xxhash
from bson import ObjectId
from numpy.typing import NDArray

from tensordb_data.blobs.inline import INLINE
from tensordb_data.blobs.mapping import map_file
from tensordb_data.blobs.refs import BlobRefs
from tensordb_data.stream.block import Block, Layouts, objects
from tensordb_data.stream.cursor import Versions
from tensordb_data.stream.inline import Inline
from tensordb_data.stream.plan import Plan

if TYPE_CHECKING:
    from tensordb_data.selection import Selection

log = logging.getLogger("tensordb_data.stream")

_MAGIC = b"TDBPLAN1"
_HEAD = struct.Struct("<8sQQ")  # magic, length of the directory, xxh3 of all that follows
_NAME = re.compile(r"[0-9a-f]{32}\.plan")
_CAP = 2 << 30
_WORTH = 20_000
"""Samples below which reading the database costs less than a file does."""


class PlanCache:
    """The plan files of one folder, of at most `cap` bytes: the least recently used go first.

    Nothing here is needed: without room or rights, plans stay in memory.
    """

    def __init__(self, folder: Path, cap: int = _CAP) -> None:
        self._folder, self._cap = folder, cap

    def open(self, key: str, layouts: Layouts, versions: Versions) -> Plan | None:
        """The plan stored under `key`, or `None`."""
        path = self._folder / f"{key}.plan"
        try:
            content = map_file(path, path.stat().st_size)
            with contextlib.suppress(OSError):
                os.utime(path)  # used now
            return _unpacked(content, layouts, versions)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, struct.error, bson.errors.BSONError) as error:
            log.warning("plan file %s is damaged and will be written anew: %s", path, str(error))
            return None

    def store(self, key: str, plan: Plan) -> None:
        """Keep a plan under `key`, if it is worth it and there is room."""
        if len(plan) < _WORTH:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self._folder, prefix="new-", suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.writelines(_packed(plan))
                os.replace(temporary, self._folder / f"{key}.plan")
            except BaseException:
                os.unlink(temporary)
                raise
            self._evict(keep=key)
        except OSError as error:
            log.warning("cannot keep a plan in %s: %s", self._folder, str(error))

    def _evict(self, keep: str) -> None:
        found = []
        for path in self._folder.iterdir():
            if _NAME.fullmatch(path.name) and path.stem != keep:
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    found.append((status.st_mtime_ns, status.st_size, path))
        room = self._cap - (self._folder / f"{keep}.plan").stat().st_size
        for _, size, path in sorted(found, reverse=True):
            room -= size
            if room < 0:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()


def plan_key(selection: Selection[Any], layouts: Layouts, versions: Versions) -> str:
    """32 hexadecimal digits, of all that decides what is in a plan."""
    db = selection.db
    ids = [{"p": db.project, "d": name} for name in sorted(versions)]
    born = {doc["_id"]["d"]: str(doc.get("created")) for doc in db._mongo()["datasets"].find({"_id": {"$in": ids}})}
    content = {
        "project": db.project,
        "query": selection.query.replace(fields=None).fingerprint,
        "fields": layouts.fields,
        "schemas": {name: schema.to_doc() for name, schema in sorted(layouts.schemas.items())},
        "versions": sorted(versions.items()),
        "born": sorted(born.items()),
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _packed(plan: Plan) -> list[bytes | memoryview]:
    block = plan.block
    directory: dict[str, Any] = {
        "ids": plan.ids,
        "n": len(plan),
        "datasets": list(block.datasets),
        "segments": {name: [str(id_) for id_ in refs.segments] for name, refs in block.refs.items()},
        "columns": {},
    }
    parts: list[bytes | memoryview] = []
    at = 0
    for name, column in _columns(block):
        data = bson.encode({"v": column.tolist()}) if column.dtype == object else np.ascontiguousarray(column).data
        view = memoryview(data).cast("B")
        directory["columns"][name] = [column.dtype.str, list(column.shape), at, len(view)]
        padding = -len(view) % 64
        parts += [view, bytes(padding)]
        at += len(view) + padding
    text = json.dumps(directory).encode()
    text += b" " * (-(_HEAD.size + len(text)) % 64)
    digest = xxhash.xxh3_64(text)
    for part in parts:
        digest.update(part)
    return [_HEAD.pack(_MAGIC, len(text), digest.intdigest()), text, *parts]


def _columns(block: Block) -> Iterator[tuple[str, NDArray[Any]]]:
    yield "ids", block.ids
    if len(block.datasets) > 1:
        yield "dataset", block.dataset
    for name, refs in block.refs.items():
        yield f"segment {name}", refs.segment
        yield f"offset {name}", refs.offset
        yield f"length {name}", refs.length[:1] if refs.length.strides == (0,) else refs.length
        if refs.compressed is not None:
            yield f"compressed {name}", refs.compressed
    for name, column in block.values.items():
        yield f"value {name}", column


def _unpacked(content: NDArray[np.uint8], layouts: Layouts, versions: Versions) -> Plan:
    magic, length, expected = _HEAD.unpack_from(content.data)
    if magic != _MAGIC:
        raise ValueError(f"expected a file that begins with {_MAGIC!r}, found {magic!r}")
    if (found := xxhash.xxh3_64_intdigest(content[_HEAD.size :].data)) != expected:
        raise ValueError(f"expected the checksum {expected:016x}, found {found:016x}")
    base = _HEAD.size + length
    directory: Mapping[str, Any] = json.loads(content[_HEAD.size : base].tobytes())
    n = directory["n"]

    def column(name: str) -> NDArray[Any]:
        dtype, shape, at, nbytes = directory["columns"][name]
        data = content[base + at : base + at + nbytes]
        if dtype == "|O":
            return objects(bson.decode(data.tobytes())["v"])
        found = data.view(dtype).reshape(shape)
        return np.broadcast_to(found, (n,)) if shape == [1] and n > 1 else found

    refs = {
        name: BlobRefs(
            tuple(map(ObjectId, segments)),
            column(f"segment {name}"),
            column(f"offset {name}"),
            column(f"length {name}"),
            column(f"compressed {name}") if f"compressed {name}" in directory["columns"] else None,
        )
        for name, segments in directory["segments"].items()
    }
    named = [name.partition(" ")[2] for name in directory["columns"] if name.startswith("value ")]
    values = {name: column(f"value {name}") for name in named}
    datasets = tuple(directory["datasets"])
    dataset = column("dataset") if len(datasets) > 1 else np.broadcast_to(np.uint16(0), (n,))
    inline = {name: Inline() for name, found in refs.items() if INLINE in found.segments}
    return Plan(Block(layouts, column("ids"), datasets, dataset, refs, values, inline), versions, directory["ids"])
