"""What samples are before a change: read in its transaction, as BSON, and mostly not decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import bson
import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from tensordb_data.common.bson_values import LENIENT
from tensordb_data.samples.changes.entries import VALUES, documents
from tensordb_data.schema.schema import PROVENANCE

_ID = b"\x07_id\0"
_AT = 4 + len(_ID)
_AFTER = _AT + 12
_KNOWN = 10_000

Doc = Mapping[str, Any]


@dataclass(frozen=True)
class Before:
    """Samples before a change."""

    ids: Sequence[ObjectId]
    values: bytes | None
    """The fields that were read, as documents one after the other; None if they take too many bytes."""


def read_before(
    collection: Any, where: Doc, fields: Iterable[str], session: Any, size: int, limit: int = VALUES
) -> Before:
    """Read some fields of samples.

    Args:
        collection: The collection of the samples; that of mongomock if there is no session.
        where: The filter.
        fields: Names of fields, or paths.
        session: Of the transaction.
        size: How many samples there are, at most.
        limit: Bytes that are kept, at most.
    """
    wanted = dict.fromkeys(fields, 1) or {"_id": 1}
    if session is None:
        docs = list(collection.find(where, wanted))
        values = b"".join(map(bson.encode, docs))
        return Before([doc["_id"] for doc in docs], values if len(values) <= limit else None)
    parts, nbytes = [], 0
    with collection.find_raw_batches(where, wanted, batch_size=size + 1, session=session) as cursor:
        for batch in cursor:
            parts.append(batch)
            nbytes += len(batch)
            if nbytes > limit:
                break
    if nbytes <= limit:
        found = b"".join(parts)
        return Before(ids_of(found), found)
    with collection.find_raw_batches(where, {"_id": 1}, batch_size=size + 1, session=session) as cursor:
        return Before(ids_of(b"".join(cursor)), None)


def change_one(collection: Any, where: Doc, fields: Iterable[str], update: Doc, session: Any) -> Before:
    """Update one sample, if there is one; returns some fields of it as they were."""
    wanted = dict.fromkeys(fields, 1)
    doc = collection.find_one_and_update(where, update, wanted, session=session)
    if doc is None:
        return Before([], b"")
    values = bson.encode(doc)
    return Before([doc["_id"]], values if len(values) <= VALUES else None)


def ids_of(values: bytes) -> list[ObjectId]:
    """The `_id` of each of some documents."""
    if (rows := _alike(values)) is None:
        return [_id(values[low:high]) for low, high in documents(values)]
    packed = rows[:, _AT:_AFTER].tobytes()
    return [ObjectId(packed[at : at + 12]) for at in range(0, len(packed), 12)]


def _alike(values: bytes) -> NDArray[np.uint8] | None:
    """Documents of one size that begin with an `_id`, as rows of bytes; None if they are others."""
    if not values:
        return None
    size = int.from_bytes(values[:4], "little")
    if size <= _AFTER or len(values) % size:
        return None
    rows = np.frombuffer(values, np.uint8).reshape(-1, size)
    head = np.frombuffer(values[:4] + _ID, np.uint8)
    return rows if (rows[:, :_AT] == head).all() else None


def _id(doc: bytes) -> ObjectId:
    if doc[4:_AT] == _ID:
        return ObjectId(doc[_AT:_AFTER])
    found: ObjectId = _decoded(doc)["_id"]
    return found


def _decoded(doc: bytes) -> dict[str, Any]:
    return bson.decode(doc, LENIENT)


def changed_by(before: Before, update: Mapping[str, Mapping[str, Any]]) -> Before | None:
    """Those of some samples which an update changes; None if that is not known without doing it.

    Args:
        before: The samples, with all that the update touches.
        update: The update.
    """
    changes = _changes(update)
    if changes is None or before.values is None:
        return None
    rows = _alike(before.values)
    changed = None if rows is None else _differ(rows, update)
    if changed is None:
        changed = _each(before.values, changes)
    if changed.all():
        return before
    if rows is not None:
        values = rows[changed].tobytes()
    else:
        found = documents(before.values)
        values = b"".join(before.values[slice(*found[at])] for at in np.flatnonzero(changed).tolist())
    return Before([before.ids[at] for at in np.flatnonzero(changed).tolist()], values)


def _differ(rows: NDArray[np.uint8], update: Mapping[str, Mapping[str, Any]]) -> NDArray[np.bool_] | None:
    """Which documents a new number in one field changes; None if they have anything but a number of its type there."""
    set_ = update.get("$set", {})
    (value,) = set_.values() if len(set_) == 1 else (None,)
    if type(value) not in (int, float, bool) or update.keys() - {"$set", "$unset"}:
        return None
    wanted = np.frombuffer(bson.encode(set_)[4:], np.uint8)
    name = 2 + len(next(iter(set_)).encode())  # with its type and its end: what comes after it is of a fixed size
    rest = rows[:, _AFTER:]
    if rest.shape[1] != len(wanted) or (rest[:, :name] != wanted[:name]).any():
        return None
    differ: NDArray[np.bool_] = (rest != wanted).any(axis=1)
    return differ


def _each(values: bytes, changes: Callable[[Doc], bool]) -> NDArray[np.bool_]:
    known: dict[bytes, bool] = {}
    changed = []
    for low, high in documents(values):
        doc = values[low:high]
        rest = doc[_AFTER:]
        if (differs := known.get(rest)) is None:
            differs = changes(_decoded(doc))
            if len(known) < _KNOWN:
                known[rest] = differs
        changed.append(differs)
    return np.array(changed, np.bool_)


def tells(update: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the values of before tell what an update changes."""
    return _changes(update) is not None


def _changes(update: Mapping[str, Mapping[str, Any]]) -> Callable[[Doc], bool] | None:
    tests: list[Callable[[Doc], bool]] = []
    for operator, changes in update.items():
        for path, value in changes.items():
            test = _change(operator, path, value)
            if test is None:
                return None
            tests.append(test)
    return lambda doc: any(test(doc) for test in tests)


def _change(operator: str, path: str, value: Any) -> Callable[[Doc], bool] | None:
    root, _, inside = path.partition(".")
    if operator == "$inc" and value:
        return lambda doc: True
    if operator == "$unset" and not inside:
        return lambda doc: root in doc
    if operator == "$unset" and root == PROVENANCE and "." not in inside:
        return lambda doc: isinstance(doc.get(root), Mapping) and inside in doc[root]
    if inside:
        return None
    if operator == "$set":
        new = bson.encode({"": value})
        return lambda doc: root not in doc or bson.encode({"": doc[root]}) != new
    if root != "tags":
        return None
    if operator == "$addToSet":
        return lambda doc: not set(value["$each"]) <= set(_tags(doc))
    if operator == "$pull":
        return lambda doc: bool(set(value["$in"]) & set(_tags(doc)))
    return None


def _tags(doc: Doc) -> Sequence[str]:
    found = doc.get("tags")
    return [tag for tag in found if isinstance(tag, str)] if isinstance(found, list) else []
