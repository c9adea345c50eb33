"""Rebuild frozen sets from the objects of their pieces. The structure of a set holds the fields of its document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bson import ObjectId
from pymongo.errors import DuplicateKeyError

from tensordb_data.common.chunks import chunks
from tensordb_data.errors import StorageError
from tensordb_data.frozen.frozen_set import FrozenSet, label_of, read_pieces
from tensordb_data.frozen.holds import counted, name_segments, segments_of
from tensordb_data.frozen.structure import FOLDER, STRUCTURE, Structure, small
from tensordb_data.housekeeping.rebuild_params import enter_tensors
from tensordb_data.tensors.write import TENSORS_AT_ONCE, tensor_id

if TYPE_CHECKING:
    from tensordb_data.housekeeping.rebuild_report import Progress, Rebuilt
    from tensordb_data.warehouse.context import Warehouse


def rebuild_frozen(
    warehouse: Warehouse, report: Rebuilt, deleted: Mapping[ObjectId, Any], progress: Progress
) -> dict[ObjectId, dict[str, Any]]:
    """Enter the pieces of all objects into the index, then the sets that are complete and were not dropped.

    Returns:
        For each dropped set, root and key of the object that holds its structure.
    """
    keys = [
        (root["id"], key)
        for root in warehouse.blobs.opened
        for key, _ in warehouse.blobs.store(root["id"]).list(f"{FOLDER}/")
    ]
    found: dict[ObjectId, tuple[Structure, bytes, int, str]] = {}
    for done, (root, key) in enumerate(keys):
        progress("objects of frozen sets", done, len(keys))
        label = f"{warehouse.blobs.store(root).url}/{key}"
        try:
            for content in enter_tensors(warehouse, root, key, report, STRUCTURE):
                data = read_pieces(warehouse, {0: (STRUCTURE, content)}, label)[0].tobytes()
                structure = Structure.from_json(data, label)
                found[structure.set["_id"]] = structure, content, root, key
        except (StorageError, KeyError) as error:
            report.skipped.append(f"{label}: {error}")
    places: dict[ObjectId, dict[str, Any]] = {}
    for id, (structure, content, root, key) in sorted(found.items(), reverse=True):  # of two of one name, the newer
        if id in deleted:
            report.deleted += 1
            places[id] = {"root": root, "key": key}
        else:
            _enter(warehouse, structure, content, report)
    return places


def _enter(warehouse: Warehouse, structure: Structure, content: bytes, report: Rebuilt) -> None:
    fields = dict(structure.set)
    contents = structure.contents
    known: dict[bytes, int] = {}
    for some in chunks(contents, TENSORS_AT_ONCE):
        ids = {"_id": {"$in": [tensor_id(warehouse.project, each) for each in some]}}
        for row in warehouse.index["tensors"].find(ids, {"n": 1, "z": 1}):
            known[bytes(row["_id"]["h"])] = row.get("z", row["n"])
    if absent := len(set(contents) - known.keys()):
        report.skipped.append(f"{label_of(fields)}: {absent} of its {len(contents)} pieces are damaged or not there")
        return
    pieces = [piece for column in structure.columns.values() for piece in column]
    nbytes = sum(known[piece] if isinstance(piece, bytes) else len(small(piece) or b"") for piece in pieces)
    internals = {"p": warehouse.project, "structure": content, "tensors": [*contents, content]}
    doc: Any = {**fields, **counted(structure, nbytes), "_tdb": internals}
    try:
        segments = list(segments_of(FrozenSet(warehouse, doc, structure)))
        warehouse.index["frozen"].replace_one({"_id": doc["_id"]}, doc, upsert=True)
    except (StorageError, DuplicateKeyError) as error:
        what = "a newer set has its name" if isinstance(error, DuplicateKeyError) else str(error)
        report.skipped.append(f"{label_of(fields)}, of {fields.get('created')}: {what}")
        return
    warehouse.index["frozen_segments"].delete_many({"set": doc["_id"]})
    for names in name_segments(warehouse, doc["_id"], segments):
        warehouse.index["frozen_segments"].insert_one(names)
    there = warehouse.index["segments"].count_documents({"_id": {"$in": segments}})
    if there < len(segments):
        report.skipped.append(f"{label_of(fields)}: {len(segments) - there} segments with blobs of it are not there")
    report.frozen += 1
