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
from tensordb_data.common.telemetry.measures import add
from tensordb_data.params.plan_versions import plan_versions
from tensordb_data.params.shared import Share, taking_part
from tensordb_data.params.table import (
    FORMAT,
    IN_PIECES,
    STRUCTURE,
    Table,
    contents_of,
    is_divided,
    refuse_incomplete,
)
from tensordb_data.runs.documents import marks, open_attempt
from tensordb_data.search.index import search_index
from tensordb_data.tensors.compression import TensorCompressor
from tensordb_data.tensors.leaf import Leaf, nbytes_of
from tensordb_data.tensors.snapshot import Snapshot
from tensordb_data.tensors.tree import parts, to_json
from tensordb_data.tensors.write import digest, store_tensors

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

    from tensordb_data.runs.lease import RunLease
    from tensordb_data.warehouse.context import Warehouse

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
    share: Share | None = None,
) -> SaveReport:
    """Store the tensors of a snapshot, and commit the document of the parameter set.

    Args:
        warehouse: The warehouse.
        snapshot: A state whose root is a dict: the parts of the set.
        fields: The fields of the document that a query finds, `lineage` among them; checked already.
        parent: The set from which it was made.
        compressor: Compresses tensors; by default without a limit on its time.
        lease: That of the run, if its saver saves the set. Without, the set belongs to the attempt that is under way.
        share: What this process stores of a set that several processes save together: the parts that it has, and as
            process 0 also all that is not divided. Returns when process 0 has committed the set.

    Raises:
        StorageError: The blob store refused or failed.
        CheckpointError: The set could not be committed; or it is not whole; or another process failed.
        RunHeldError: The lease is another's.
    """
    try:
        report = _save(warehouse, snapshot, fields, parent, compressor, lease, share)
    except BaseException:
        add("tensordb.saves", outcome="failed")
        raise
    add("tensordb.saves", outcome="durable")
    add("tensordb.save.bytes", report.nbytes)
    add("tensordb.save.stored", report.stored)
    add("tensordb.save.time", report.seconds)
    return report


def _save(
    warehouse: Warehouse,
    snapshot: Snapshot,
    fields: Mapping[str, Any],
    parent: ObjectId | None,
    compressor: TensorCompressor | None,
    lease: RunLease | None,
    share: Share | None,
) -> SaveReport:
    began = time.perf_counter()
    table, tensors = _table(snapshot)
    run = fields.get("run")
    fields = {**fields, "lineage": {**fields["lineage"], "parent": parent}}
    if share is None:
        id = ObjectId()
        document, about = _document(warehouse, id, snapshot, table, fields, lease)
        tensors[document["_tdb"]["structure"]] = about, memoryview(about.value)
        insert = _commit(warehouse, document, lease)
        stored = store_tensors(warehouse, "params", id, tensors, insert, compressor, run)
        return SaveReport(id, snapshot.nbytes, stored, time.perf_counter() - began)
    with taking_part(warehouse, share) as shared:
        stored = store_tensors(warehouse, "params", ObjectId(), tensors, lambda session: None, compressor, run)
        if share.rank:
            shared.publish(table)
            shared.wait_for_commit()
        else:
            table, finish = shared.with_others(table)
            document, about = _document(warehouse, share.set, snapshot, table, fields, lease)
            tensors = {document["_tdb"]["structure"]: (about, memoryview(about.value))}
            insert = _commit(warehouse, document, lease, finish)
            others = document["_tdb"]["tensors"]
            stored += store_tensors(warehouse, "params", share.set, tensors, insert, compressor, run, others)
    return SaveReport(share.set, snapshot.nbytes, stored, time.perf_counter() - began)


def _document(
    warehouse: Warehouse,
    id: ObjectId,
    snapshot: Snapshot,
    table: Table,
    fields: Mapping[str, Any],
    lease: RunLease | None,
) -> tuple[dict[str, Any], Leaf]:
    """The document of a set, and its structure."""
    refuse_incomplete(table)
    document: dict[str, Any] = {"_id": id, **fields, "created": dt.datetime.now(dt.timezone.utc)}
    # the structure repeats the fields of the document: a rebuild of a lost index needs them
    said = json_util.dumps(document, json_options=json_util.CANONICAL_JSON_OPTIONS)
    divided = [row for row in table if is_divided(row)]
    format = IN_PIECES if divided else FORMAT
    structure = to_json({"format": format, "tree": snapshot.structure, "leaves": table, "set": json.loads(said)})
    about_digest = digest(memoryview(structure))
    whole = sum(leaf.nbytes for leaf in snapshot.leaves if leaf.piece is None)
    document["_tdb"] = {
        "p": warehouse.project,
        "s": 0,
        "parts": sorted(parts(snapshot.structure)),
        "structure": about_digest,
        "tensors": [*contents_of(table), about_digest],
        "bytes": whole + sum(nbytes_of(row[2], row[3]) or 0 for row in divided),
        **marks(_attempt(warehouse, fields.get("run"), lease)),
    }
    if (plans := plan_versions(snapshot.structure)) is not None:
        document["_tdb"]["plans"] = plans
    search_index(warehouse, "params").add_entities([document])
    return document, Leaf(STRUCTURE, "bytes", "|u1", (len(structure),), len(structure), structure)


def fields_of(structure: Mapping[str, Any]) -> dict[str, Any] | None:
    """The fields of the document of a set when it was saved, without `_tdb`; None in sets of older versions."""
    said = structure.get("set")
    options = json_util.CANONICAL_JSON_OPTIONS.with_options(tz_aware=True)
    return None if said is None else dict(json_util.loads(json.dumps(said), json_options=options))


def _table(snapshot: Snapshot) -> tuple[Table, dict[bytes, tuple[Leaf, memoryview]]]:
    """One row for each leaf, see `params.table`; and the tensors to be stored, by their content."""
    table: Table = []
    tensors: dict[bytes, tuple[Leaf, memoryview]] = {}
    for leaf, data in zip(snapshot.leaves, snapshot.data, strict=True):
        said: tuple[str | None, str | None]
        if leaf.nbytes <= INLINE:
            said = None, base64.b64encode(data).decode()
        else:
            content = _content(leaf, data)
            tensors[content] = leaf, data
            said = content.hex(), None
        row: list[Any] = [leaf.name, leaf.kind, leaf.dtype]
        if leaf.piece is None:
            table.append([*row, list(leaf.shape), *said])
        else:
            box = leaf.piece.box
            pieces = [] if box is None else [[list(box.offset), list(box.shape), *said]]
            table.append([*row, list(leaf.piece.whole), pieces, None])
    return table, tensors


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
    warehouse: Warehouse,
    document: dict[str, Any],
    lease: RunLease | None,
    then: Callable[[ClientSession | None], None] | None = None,
) -> Callable[[ClientSession | None], None]:
    def work(session: ClientSession | None) -> None:
        index = warehouse.index
        if lease is not None:
            lease.confirm(session)
        scope = {"_tdb.p": warehouse.project, "run": document.get("run")}
        last = index["params"].find_one(scope, {"_tdb.s": 1}, sort=[("_tdb.s", -1)], session=session)
        document["_tdb"]["s"] = 1 + (last["_tdb"]["s"] if last else 0)
        index["params"].insert_one(document, session=session)
        if then is not None:
            then(session)

    return work
