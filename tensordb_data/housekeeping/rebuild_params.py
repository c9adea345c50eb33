"""Rebuild parameter sets from the objects of their tensors.

The structure of a set is a tensor too, and holds the fields of its document. All bytes are read and hashed, since the
index names each tensor by a hash of its content.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import zstandard
from bson import ObjectId
from pymongo import UpdateOne

from tensordb_data.blobs.stores.base import Store
from tensordb_data.common.chunks import chunks, runs_by_size
from tensordb_data.common.zstd import expanded_size
from tensordb_data.errors import CheckpointError, CorruptBlobError, StorageError
from tensordb_data.params.load import describe
from tensordb_data.params.plan_versions import plan_versions
from tensordb_data.params.save import fields_of
from tensordb_data.params.table import STRUCTURE, contents_of, stored_parts
from tensordb_data.search.index import search_index
from tensordb_data.tensors.compression import decompress
from tensordb_data.tensors.read import read_leaves
from tensordb_data.tensors.tree import from_json, parts
from tensordb_data.tensors.write import TENSORS_AT_ONCE, digest, tensor_id

if TYPE_CHECKING:
    from tensordb_data.housekeeping.rebuild_report import Progress, Rebuilt
    from tensordb_data.warehouse.context import Warehouse

_ROUND = 64 << 20  # bytes read at once
_HEADER = 256 << 20  # bytes that no header of an object has

Doc = dict[str, Any]


@dataclass(frozen=True)
class _Found:
    """A set of which the structure is there."""

    created: dt.datetime
    id: ObjectId
    content: bytes
    root: int
    key: str


def rebuild_sets(
    warehouse: Warehouse, report: Rebuilt, deleted: Mapping[ObjectId, Any], progress: Progress
) -> dict[ObjectId, Doc]:
    """Enter the tensors of all objects into the index, then the sets that are complete and were not deleted.

    Returns:
        For each deleted set, root and key of the object that holds its structure.
    """
    keys = [
        (root["id"], key)
        for root in warehouse.blobs.opened
        for key, _ in warehouse.blobs.store(root["id"]).list("params/")
    ]
    found: dict[ObjectId, _Found] = {}
    for done, (root, key) in enumerate(keys):
        progress("objects of tensors", done, len(keys))
        store = warehouse.blobs.store(root)
        try:
            for content in enter_tensors(warehouse, root, key, report, STRUCTURE):
                about = _about(warehouse, content, root, key)
                if about is None:
                    report.skipped.append(f"{store.url}/{key}: a set of an older version, which does not say whose")
                else:
                    found[about.id] = about
        except (StorageError, CheckpointError) as error:
            report.skipped.append(f"{store.url}/{key}: {error}")
    order = sorted(found.values(), key=lambda each: (each.created, each.id))
    places: dict[ObjectId, Doc] = {}
    for done, each in enumerate(order):
        progress("parameter sets", done, len(order))
        if each.id in deleted:
            report.deleted += 1
            places[each.id] = {"root": each.root, "key": each.key}
        else:
            _enter_set(warehouse, each, report)
    return places


def enter_tensors(warehouse: Warehouse, root: int, key: str, report: Rebuilt, structure: str) -> Iterator[bytes]:
    """Enter the tensors of an object; yields the content addresses of those that are structures of sets.

    Args:
        warehouse: The warehouse.
        root: The blob root.
        key: The key of the object.
        report: Gets other projects that are met.
        structure: The name of the tensor that is a structure.

    Raises:
        StorageError: It cannot be read.
    """
    store = warehouse.blobs.store(root)
    about, places = _header(store, key)
    if about.get("project") != warehouse.project:
        if about.get("project") not in (None, *report.projects):
            report.projects.append(about["project"])
        return
    compressed = json.loads(about.get("zstd", "{}"))
    rows: list[Doc] = []
    structures: list[bytes] = []
    order = list(places)
    for low, high in runs_by_size((nbytes for _, nbytes in places.values()), _ROUND):
        names = order[low:high]
        got = store.get_ranges(key, [places[n][0] for n in names], [places[n][1] for n in names])
        for name, data in zip(names, got, strict=True):
            try:
                content, nbytes = _content(data) if name in compressed else (digest(data), None)
            except zstandard.ZstdError:  # sets that need this tensor will be skipped
                continue
            rows.append(
                {"_id": tensor_id(warehouse.project, content), "root": root, "key": key, "o": places[name][0],
                 "n": places[name][1], "state": "live", **({} if nbytes is None else {"z": nbytes})}
            )  # fmt: skip
            if name == structure or name.startswith(f"{structure}#"):
                structures.append(content)
    for some in chunks(rows, TENSORS_AT_ONCE):
        made = [
            UpdateOne({"_id": row.pop("_id")}, {"$setOnInsert": row, "$currentDate": {"created": True}}, upsert=True)
            for row in some
        ]
        warehouse.index["tensors"].bulk_write(made, ordered=False)
    yield from structures


def _header(store: Store, key: str) -> tuple[Mapping[str, str], dict[str, tuple[int, int]]]:
    """What a safetensors object says of itself, and where in it each tensor lies: offset and bytes."""
    try:
        size = store.size(key)
        (front,) = store.get_ranges(key, [0], [8])
        length = int.from_bytes(front, "little")
        if not 0 < length <= min(size - 8, _HEADER):
            raise ValueError(f"a header of {length} bytes")
        (text,) = store.get_ranges(key, [8], [length])
        document = json.loads(bytes(text))
        about = document.pop("__metadata__", {})
        places = {name: each["data_offsets"] for name, each in document.items()}
        start = 8 + length
        return about, {name: (start + low, high - low) for name, (low, high) in places.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptBlobError(f"expected an object in safetensors layout, found something else: {error}") from None


def _content(stored: memoryview) -> tuple[bytes, int]:
    """The hash of a tensor that is stored as zstd, and its bytes."""
    nbytes = expanded_size(stored, sys.maxsize)  # none of it is kept
    return decompress(stored, None, nbytes), nbytes


def _about(warehouse: Warehouse, content: bytes, root: int, key: str) -> _Found | None:
    fields = fields_of(_structure(warehouse, content, key))
    return None if fields is None else _Found(fields["created"], fields["_id"], content, root, key)


def _structure(warehouse: Warehouse, content: bytes, label: str) -> Any:
    return from_json(read_leaves(warehouse, {0: (STRUCTURE, content)}, label)[0].data)


def _enter_set(warehouse: Warehouse, found: _Found, report: Rebuilt) -> None:
    structure = _structure(warehouse, found.content, f"parameter set {found.id}")
    fields = fields_of(structure)
    assert fields is not None
    contents = contents_of(structure["leaves"])
    ids = [tensor_id(warehouse.project, content) for content in contents]
    known = {
        bytes(row["_id"]["h"]): row.get("z", row["n"])
        for some in chunks(ids, TENSORS_AT_ONCE)
        for row in warehouse.index["tensors"].find({"_id": {"$in": some}}, {"n": 1, "z": 1})
    }
    tensors = [(row[0], content, text) for row in structure["leaves"] for content, text in stored_parts(row)]
    absent = [name for name, content, _ in tensors if content is not None and bytes.fromhex(content) not in known]
    if absent:
        named = ", ".join(absent[:3]) + (" and others" if len(absent) > 3 else "")
        report.skipped.append(f"{describe(fields)}: {len(absent)} of its tensors are damaged or not there: {named}")
        return
    params = warehouse.index["params"]
    scope = {"_tdb.p": warehouse.project, "run": fields["run"]}
    last = params.find_one(scope, {"_tdb.s": 1}, sort=[("_tdb.s", -1)])
    inline = sum(len(base64.b64decode(text or "")) for _, content, text in tensors if content is None)
    stored = sum(int(known[bytes.fromhex(content)]) for _, content, _ in tensors if content is not None)
    fields["_tdb"] = {
        "p": warehouse.project, "s": 1 + (last["_tdb"]["s"] if last else 0), "parts": sorted(parts(structure["tree"])),
        "structure": found.content, "tensors": [*contents, found.content], "bytes": inline + stored,
    }  # fmt: skip
    if (plans := plan_versions(structure["tree"])) is not None:
        fields["_tdb"]["plans"] = plans
    search_index(warehouse, "params").add_entities([fields])
    params.replace_one({"_id": found.id}, fields, upsert=True)
    if fields["run"] is not None:
        for some in chunks([*ids, tensor_id(warehouse.project, found.content)], TENSORS_AT_ONCE):
            whose = {"_id": {"$in": some}, "run": {"$exists": False}}
            warehouse.index["tensors"].update_many(whose, {"$set": {"run": fields["run"]}})
    report.sets += 1
    name = f"run {fields['run']}" if fields["run"] is not None else "no run"
    report.runs[name] = report.runs.get(name, 0) + 1
