"""Apply updates that differ from sample to sample: stamp the samples, and note in the log what was done."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import bson
from bson import ObjectId

from tensordb_data.samples.changes.apply import STAMP
from tensordb_data.samples.changes.before import read_before
from tensordb_data.samples.changes.entries import VALUES, Kept, write_entry
from tensordb_data.samples.mutations import Mutation
from tensordb_data.schema.schema import PROVENANCE

_BLOB = "_tdb.b."

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse
    from tensordb_data.warehouse.index import Update


def logged_updates(
    warehouse: Warehouse,
    mutation: Mutation,
    updates: Sequence[Update],
    of: Mapping[ObjectId, str],
    fields: Collection[str],
    kind: str,
    source: str | None,
    session: Any,
) -> int:
    """Within a step, update samples one by one.

    Args:
        warehouse: The warehouse.
        mutation: The mutation.
        updates: A filter with the `_id` of a sample, and its update.
        of: The dataset of each sample.
        fields: The fields that are changed.
        kind: What is done, for the log.
        source: Who annotates.
        session: Of the transaction.

    Returns:
        How many were modified.
    """
    count = 0
    by_dataset: dict[str, list[Update]] = {}
    for where, update in updates:
        by_dataset.setdefault(of[where["_id"]], []).append((where, update))
    for name, some in by_dataset.items():
        number = mutation.numbers.get(name)
        ids = [where["_id"] for where, _ in some]
        here = {"_id": {"$in": ids}, "_tdb.p": warehouse.project}
        before = read_before(warehouse.index["data"], here, sorted(fields), session, len(some))
        sent: Sequence[Update] = some
        if mutation.stamps and number is not None:
            sent = [stamped(update, number) for update in some]
        modified = warehouse.index.update_each("data", sent, session)
        count += modified
        new = new_values(some, set(before.ids))
        if modified:
            write_entry(
                warehouse, name, kind, number=number, count=modified, session=session, at=mutation.at(name),
                source=source, ids=before.ids, values=Kept(before.values, new),
            )  # fmt: skip
    return count


def note_updates(
    warehouse: Warehouse, dataset: str, updates: Sequence[Update], number: int, source: str | None, session: Any
) -> Callable[[], None]:
    """Within the transaction of an ingest, read the earlier values of samples that it is about to update.

    Returns:
        Writes the entry of the log, when they are updated.
    """
    fields = {
        path for _, update in updates for changes in update.values() for path in changes
        if path.split(".")[0] not in ("_tdb", PROVENANCE)
    }  # fmt: skip
    ids = [where["_id"] for where, _ in updates]
    before = read_before(warehouse.index["data"], {"_id": {"$in": ids}}, sorted(fields), session, len(ids))
    new = new_values(updates, set(ids))
    return lambda: write_entry(
        warehouse, dataset, "ingest", number=number, count=len(updates), session=session, source=source,
        ids=before.ids, values=Kept(before.values, new),
    )  # fmt: skip


def stamped(update: Update, number: int) -> Update:
    """An update of a sample that also stamps it."""
    where, changes = update
    return where, {**changes, "$set": {**changes.get("$set", {}), STAMP: number}}


def new_values(updates: Sequence[Update], ids: Collection[ObjectId]) -> bytes | None:
    """The new values of some samples, `{_id, set, unset, blobs}` one after the other; None if they are large."""
    found, nbytes = [], 0
    for where, update in updates:
        if where["_id"] not in ids:
            continue
        set_ = {path: value for path, value in update.get("$set", {}).items() if not _is_note(path)}
        unset = [path for path in update.get("$unset", {}) if not _is_note(path)]
        blobs = [path.removeprefix(_BLOB) for path in update.get("$set", {}) if path.startswith(_BLOB)]
        found.append(bson.encode({"_id": where["_id"], "set": set_, "unset": unset, "blobs": blobs}))
        nbytes += len(found[-1])
        if nbytes > VALUES:
            return None
    return b"".join(found)


def _is_note(path: str) -> bool:
    return path.startswith((f"{PROVENANCE}.", "_tdb."))
