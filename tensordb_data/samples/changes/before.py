"""What samples are before a change: read in its transaction, as BSON, and mostly not decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import bson
from bson import ObjectId

from tensordb_data.common.bson_values import LENIENT
from tensordb_data.samples.changes.entries import VALUES, documents
from tensordb_data.schema.schema import PROVENANCE

_ID = b"\x07_id\0"
_AFTER = 4 + len(_ID) + 12
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


def ids_of(values: bytes) -> list[ObjectId]:
    """The `_id` of each of some documents."""
    return [_id(values[low:high]) for low, high in documents(values)]


def _id(doc: bytes) -> ObjectId:
    if doc[4 : 4 + len(_ID)] == _ID:
        return ObjectId(doc[4 + len(_ID) : _AFTER])
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
    if before.values is None or (changes := _changes(update)) is None:
        return None
    known: dict[bytes, bool] = {}
    kept = []
    for at, (low, high) in enumerate(documents(before.values)):
        doc = before.values[low:high]
        rest = doc[_AFTER:]
        if (differs := known.get(rest)) is None:
            differs = changes(_decoded(doc))
            if len(known) < _KNOWN:
                known[rest] = differs
        if differs:
            kept.append((at, doc))
    if len(kept) == len(before.ids):
        return before
    return Before([before.ids[at] for at, _ in kept], b"".join(doc for _, doc in kept))


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
