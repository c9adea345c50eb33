"""Save a snapshot as a parameter set that a query finds.

`tensors.write` stores the tensors. The structure of the set is a tensor too. The document of the set is written last.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bson import ObjectId, json_util

from tensordb_data.common.html import Report
from tensordb_data.runs.documents import marks, open_attempt
from tensordb_data.search.index import search_index
from tensordb_data.tensors.compression import TensorCompressor
from tensordb_data.tensors.leaf import Leaf
from tensordb_data.tensors.snapshot import Snapshot
from tensordb_data.tensors.tree import parts, to_json
from tensordb_data.tensors.write import digest, store_tensors

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

    from tensordb_data.runs.lease import RunLease
    from tensordb_data.warehouse.context import Warehouse

FORMAT = 1
STRUCTURE = "structure.json"
"""Name of the tensor that says what a set consists of."""
INLINE = 256  # bytes up to which a tensor is part of the structure: Adam keeps a scalar for each parameter


@dataclass(frozen=True)
class SaveReport(Report):
    """What a save did.

    Attributes:
        id: The `_id` of the parameter set.
        nbytes: Bytes of its tensors.
        stored: Bytes written to the blob store; the others were there already.
        seconds: The time that it took.
    """

    id: ObjectId
    nbytes: int
    stored: int
    seconds: float


def save_parameters(
    warehouse: Warehouse,
    snapshot: Snapshot,
    fields: Mapping[str, Any],
    parent: ObjectId | None = None,
    compressor: TensorCompressor | None = None,
    lease: RunLease | None = None,
) -> SaveReport:
    """Store the tensors of a snapshot, and commit the document of the parameter set.

    Args:
        warehouse: The warehouse.
        snapshot: A state whose root is a dict: the parts of the set.
        fields: The fields of the document that a query finds, `lineage` among them; checked already.
        parent: The set from which it was made.
        compressor: Compresses tensors; by default without a limit on its time.
        lease: That of the run, if its saver saves the set. Without, the set belongs to the attempt that is under way.

    Raises:
        StorageError: The blob store refused or failed.
        CheckpointError: The set could not be committed.
        RunHeldError: The lease is another's.
    """
    began = time.perf_counter()
    id = ObjectId()
    table, contents = _table(snapshot)
    document: dict[str, Any] = {
        "_id": id,
        **fields,
        "lineage": {**fields["lineage"], "parent": parent},
        "created": dt.datetime.now(dt.timezone.utc),
    }
    # the structure repeats the fields of the document: a rebuild of a lost index needs them
    said = json_util.dumps(document, json_options=json_util.CANONICAL_JSON_OPTIONS)
    structure = to_json({"format": FORMAT, "tree": snapshot.structure, "leaves": table, "set": json.loads(said)})
    about = Leaf(STRUCTURE, "bytes", "|u1", (len(structure),), len(structure), structure)
    about_digest = digest(memoryview(structure))
    tensors = {
        content: (leaf, data)
        for content, leaf, data in zip(contents, snapshot.leaves, snapshot.data, strict=True)
        if content is not None
    }
    references = [*tensors, about_digest]
    tensors[about_digest] = (about, memoryview(structure))
    document["_tdb"] = {
        "p": warehouse.project,
        "s": 0,
        "parts": sorted(parts(snapshot.structure)),
        "structure": about_digest,
        "tensors": references,
        "bytes": snapshot.nbytes,
        **marks(_attempt(warehouse, fields.get("run"), lease)),
    }
    search_index(warehouse, "params").add_entities([document])
    insert = _commit(warehouse, document, lease)
    stored = store_tensors(warehouse, "params", id, tensors, insert, compressor, fields.get("run"))
    return SaveReport(id, snapshot.nbytes, stored, time.perf_counter() - began)


def fields_of(structure: Mapping[str, Any]) -> dict[str, Any] | None:
    """The fields of the document of a set when it was saved, without `_tdb`; None in sets of older versions."""
    said = structure.get("set")
    options = json_util.CANONICAL_JSON_OPTIONS.with_options(tz_aware=True)
    return None if said is None else dict(json_util.loads(json.dumps(said), json_options=options))


def _table(snapshot: Snapshot) -> tuple[list[list[Any]], list[bytes | None]]:
    """One row for each leaf: name, kind, dtype, shape, and the digest or, for a small leaf, the bytes."""
    table: list[list[Any]] = []
    contents: list[bytes | None] = []
    for leaf, data in zip(snapshot.leaves, snapshot.data, strict=True):
        row: list[Any] = [leaf.name, leaf.kind, leaf.dtype, list(leaf.shape)]
        if leaf.nbytes <= INLINE:
            table.append([*row, None, base64.b64encode(data).decode()])
            contents.append(None)
        else:
            content = _content(leaf, data)
            table.append([*row, content.hex(), None])
            contents.append(content)
    return table, contents


_fixed: dict[int, tuple[weakref.ref[Any], bytes]] = {}
"""Digests of values that never change, by `id()`, as long as the values exist."""


def _content(leaf: Leaf, data: memoryview) -> bytes:
    """The digest of a leaf. That of a leaf which never changes is computed once."""
    if not leaf.fixed:
        return digest(data)
    key = id(leaf.value)
    known = _fixed.get(key)
    if known is None or known[0]() is not leaf.value:
        known = _fixed[key] = weakref.ref(leaf.value, lambda _: _fixed.pop(key, None)), digest(data)
    return known[1]


def _attempt(warehouse: Warehouse, run: str | None, lease: RunLease | None) -> Mapping[str, Any] | None:
    if lease is not None:
        return lease.attempt
    return None if run is None else open_attempt(warehouse, run)


def _commit(
    warehouse: Warehouse, document: dict[str, Any], lease: RunLease | None
) -> Callable[[ClientSession | None], None]:
    def work(session: ClientSession | None) -> None:
        index = warehouse.index
        if lease is not None:
            lease.confirm(session)
        scope = {"_tdb.p": warehouse.project, "run": document.get("run")}
        last = index["params"].find_one(scope, {"_tdb.s": 1}, sort=[("_tdb.s", -1)], session=session)
        document["_tdb"]["s"] = 1 + (last["_tdb"]["s"] if last else 0)
        index["params"].insert_one(document, session=session)

    return work
