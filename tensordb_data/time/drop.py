"""Drop a frozen set, unless a checkpoint or a job refers to it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import InUseError
from tensordb_data.frozen.frozen_set import find_set
from tensordb_data.mongo.retry import read_all
from tensordb_data.query.frozen_set import Frozen
from tensordb_data.warehouse.deletion_log import delete_with_tombstone

if TYPE_CHECKING:
    from bson import ObjectId

    from tensordb_data.warehouse.context import Warehouse

_NAMED = 3


def drop_set(warehouse: Warehouse, frozen: Frozen, force: bool) -> None:
    """See `FrozenSelection.drop`."""
    doc = find_set(warehouse, frozen)
    if not force and (found := users_of(warehouse, doc["_id"], doc["name"])):
        named, more = ", ".join(found[:_NAMED]), f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise InUseError(
            f"the frozen set {doc['name']!r} is in use: {named}{more} would name a set that is not there. Delete them"
            " first, or drop it with force=True"
        )
    # With a tombstone, so that a rebuild of a lost index does not bring it back.
    delete_with_tombstone(warehouse, "frozen", [doc], partial(_delete, warehouse))


def _delete(warehouse: Warehouse, ids: list[ObjectId]) -> int:
    return warehouse.index.transaction(partial(_remove, warehouse, ids))


def _remove(warehouse: Warehouse, ids: list[ObjectId], session: Any) -> int:
    warehouse.index["frozen_segments"].delete_many({"set": {"$in": ids}}, session=session)
    return int(warehouse.index["frozen"].delete_many({"_id": {"$in": ids}}, session=session).deleted_count)


def users_of(warehouse: Warehouse, id: ObjectId, name: str) -> list[str]:
    """Checkpoints and jobs whose queries name a set, for people."""
    query = {"$regex": f'"frozen":\\{{"name":{_text(name)}(,"id":"{id}")?\\}}'}
    found = [
        f"checkpoint {doc['_id']} of run {doc.get('run')!r} at step {doc.get('step')}"
        for doc in _read(warehouse, "params", {"lineage.data.query": query}, {"run": 1, "step": 1})
    ]
    jobs = _read(warehouse, "jobs", {"data": query}, {"kind": 1, "status": 1})
    return found + [f"job {doc['_id']} ({doc.get('kind')}, {doc.get('status')})" for doc in jobs]


def _read(
    warehouse: Warehouse, name: str, filter: Mapping[str, Any], fields: Mapping[str, int]
) -> list[Mapping[str, Any]]:
    return read_all(warehouse.index[name].find({"_tdb.p": warehouse.project, **filter}, fields).sort("_id", 1))


def _text(name: str) -> str:
    """A pattern for a name as JSON has it."""
    return re.escape(json.dumps(name, ensure_ascii=False))
