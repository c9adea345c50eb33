"""Apply an update to samples: stamp them, and note in the log what was done, in the same transactions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from tensordb_data.common.chunks import chunks
from tensordb_data.mongo.retry import retry_while_unavailable
from tensordb_data.samples import mutations
from tensordb_data.samples.changes.before import Before, change_one, changed_by, read_before, tells
from tensordb_data.samples.changes.entries import Kept, write_entry
from tensordb_data.samples.mutations import Mutation, are_few
from tensordb_data.schema.schema import PROVENANCE

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery
    from tensordb_data.warehouse.context import Warehouse

STAMP = "_tdb.m"
"""Where the number of the last mutation of a sample is."""

_ID = 12

Update = Mapping[str, Mapping[str, Any]]


def update_samples(selection: BoundQuery, update: Update) -> int:
    """Apply an update to the samples of a selection, each of them once; returns how many were modified."""
    warehouse = selection.warehouse
    ids, names = retry_while_unavailable(lambda: _found(selection), reads=True)
    if not len(ids):
        return 0
    fields = {path.split(".")[0] for changes in update.values() for path in changes}
    alone = len(ids) <= mutations.LIMIT
    with Mutation(warehouse, "update", names, alone=alone, stamps=are_few(warehouse, len(ids), names)) as mutation:

        def change(some: Sequence[bytes], session: Any) -> int:
            mutation.check_not_renamed(fields)
            where = selection.of_ids([ObjectId(id) for id in some])
            return logged_update(warehouse, mutation, where, sorted(names), update, len(some), session)

        return sum(mutation.step(some, change) for some in _parts(ids))


def logged_update(
    warehouse: Warehouse,
    mutation: Mutation,
    where: Mapping[str, Any],
    names: Sequence[str],
    update: Update,
    size: int,
    session: Any,
) -> int:
    """Within a step, update samples, stamp them, and write the entries of the log.

    Args:
        warehouse: The warehouse.
        mutation: The mutation.
        where: The filter of the samples.
        names: Their datasets.
        update: The update.
        size: How many samples there are, at most.
        session: Of the transaction.

    Returns:
        How many were modified.
    """
    count = 0
    for name in names:
        here = dict(where) if len(names) == 1 else {"$and": [where, {"dataset": name}]}
        count += _update(warehouse, mutation, here, name, update, size, session)
    return count


def _update(
    warehouse: Warehouse,
    mutation: Mutation,
    where: Mapping[str, Any],
    name: str,
    update: Update,
    size: int,
    session: Any,
) -> int:
    data, number = warehouse.index["data"], mutation.numbers.get(name)
    stamps = mutation.stamps and number is not None
    stamped = {**update, "$set": {**update.get("$set", {}), STAMP: number}}
    at_once = size == 1 and stamps and tells(update)
    if at_once:
        before = change_one(data, where, _read(update), stamped, session)
    else:
        before = read_before(data, where, _read(update), session, size)
    if not before.ids:
        return 0
    changed = changed_by(before, update)
    if at_once:  # it is done; of values that are too large to be kept, nobody knows whether they were the same
        count = len(before.ids if changed is None else changed.ids)
    elif not stamps or changed is None:
        count = int(data.update_many(where, update, session=session).modified_count)
        if stamps:  # the server alone knows how many are modified; those that fit still have these ids
            data.update_many({"_id": {"$in": list(before.ids)}}, {"$set": {STAMP: number}}, session=session)
    else:
        data.update_many(where, stamped, session=session)
        count = len(changed.ids)
    if count:
        found: Before = before if changed is None else changed
        write_entry(
            warehouse, name, kind_of(update), number=number, count=count, session=session,
            at=mutation.at(name), ids=found.ids, update=_of_user(update), values=Kept(found.values),
        )  # fmt: skip
    return count


def kind_of(update: Update) -> str:
    """What an update is called in the log."""
    for operator, kind in (("$addToSet", "tag"), ("$pull", "untag")):
        if "tags" in update.get(operator, {}):
            return kind
    return "update"


def _read(update: Update) -> list[str]:
    """What an update changes: fields as wholes, and who has annotated them."""
    paths = {path for changes in update.values() for path in changes}
    return sorted({path if _is_note(path, update) else path.split(".")[0] for path in paths})


def _of_user(update: Update) -> dict[str, dict[str, Any]]:
    """An update without what is ours."""
    kept = {
        operator: {path: value for path, value in changes.items() if not _is_note(path, update)}
        for operator, changes in update.items()
    }
    return {operator: changes for operator, changes in kept.items() if changes}


def _is_note(path: str, update: Update) -> bool:
    return path in update.get("$unset", {}) and path.startswith(f"{PROVENANCE}.")


def _found(selection: BoundQuery) -> tuple[NDArray[Any], set[str]]:
    """The `_id`s of a selection in order, and its datasets.

    Each `_id` is there once. A cursor may give a document twice if it moves in an index meanwhile.
    """
    wanted = {"_id": 1, "dataset": 1}
    if selection.query.limit is None and selection.query.split is None:
        cursor = selection.collection.find(selection.filter(), wanted, batch_size=mutations.LIMIT)
    else:
        cursor = selection.cursor(wanted)
    packed, names = bytearray(), set()
    with contextlib.closing(cursor):
        for doc in cursor:
            packed += doc["_id"].binary
            names.add(doc["dataset"])
    return np.unique(np.frombuffer(bytes(packed), f"S{_ID}")), names


def _parts(ids: NDArray[Any]) -> Iterator[list[bytes]]:
    # NumPy leaves out zeros at the end.
    return ([id.ljust(_ID, b"\0") for id in some] for some in chunks(ids.tolist(), mutations.LIMIT))
