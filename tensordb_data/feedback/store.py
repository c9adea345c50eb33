"""The documents of feedback: chunks that are only added, and merged when there are many.

A chunk has the moments of some samples, for one number of one run. A flush adds a chunk, so processes do not wait for
each other, and a chunk that is sent twice is one by its `_id`. A merge writes the moments of all chunks into new ones,
which nobody sees, and then one transaction names these as the base and removes the others.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from bson import ObjectId
from pymongo.errors import DuplicateKeyError

from tensordb_data.common.chunks import chunks
from tensordb_data.errors import BusyError, StorageError
from tensordb_data.feedback.moments import Ids, Moments, merged
from tensordb_data.mongo.retry import retry_while_unavailable

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

    from tensordb_data.warehouse.context import Warehouse

MOST = 200_000
"""The most samples of a chunk: 44 bytes each, where a document has room for 16 MB."""
_STATE = "state"
_SOME, _MANY, _TOO_MANY = 8, 64, 512  # chunks: from when on a merge may pay, and when it is due
_ATTEMPTS = 10
_REMEMBERED = 5000
"""Chunks of which the state knows that they were merged, for a process that did not get the answer and sends again."""
_ABANDONED = dt.timedelta(hours=1)
_COLUMNS = {"count": "<i8", "mean": "<f8", "squares": "<f8", "last": "<f8"}

Version = tuple[Any, int]
"""Which feedback there is: the base, and how many chunks were added since. It changes with each flush and merge."""


def chunk_documents(warehouse: Warehouse, run: str, name: str, moments: Moments) -> list[dict[str, Any]]:
    """The documents of moments that a flush adds."""
    return [_document(warehouse, run, name, moments.take(rows), None) for rows in _slices(len(moments))]


def insert_chunk(warehouse: Warehouse, document: Mapping[str, Any]) -> None:
    """Add a chunk. To add it twice changes nothing, also if it was merged in between."""
    collection = warehouse.index["feedback"]
    merged_already = {"_id": _state_id(warehouse, document["r"], document["m"]), "merged": document["_id"]}

    def insert() -> None:
        if collection.find_one(merged_already, {"_id": 1}) is None:
            collection.insert_one(dict(document))

    _once(warehouse, insert)


def version_of(warehouse: Warehouse, run: str, name: str) -> Version:
    """The version of the feedback now."""
    base = _base(warehouse, run, name)
    flushed = {**_of(warehouse, run, name), "g": None}
    return base, retry_while_unavailable(lambda: warehouse.index["feedback"].count_documents(flushed), reads=True)


def names_of(warehouse: Warehouse, run: str) -> list[str]:
    """The names of the numbers that a run has told of samples."""
    of = {"p": warehouse.project, "r": run, "g": {"$ne": _STATE}}
    found = retry_while_unavailable(lambda: warehouse.index["feedback"].distinct("m", of), reads=True)
    return sorted(name for name in found if isinstance(name, str))


def read_moments(warehouse: Warehouse, run: str, name: str) -> tuple[Moments, Version]:
    """All that is stored of a number, and its version.

    Raises:
        StorageError: A document is damaged.
        BusyError: The feedback was merged again and again meanwhile.
    """
    found, base = _read(warehouse, run, name)
    return merged([_moments(doc) for doc in found]), (base, sum(doc["g"] is None for doc in found))


def merge_if_due(warehouse: Warehouse, run: str, name: str) -> bool:
    """Merge the chunks of a number if there are many. Returns whether it has merged them."""
    sizes: dict[bool, list[int]] = {True: [], False: []}
    columns = {"g": 1, "n": 1}
    for doc in warehouse.index["feedback"].find({**_of(warehouse, run, name), "g": {"$ne": _STATE}}, columns):
        sizes[doc.get("g") is None].append(doc["n"] if isinstance(doc.get("n"), int) else 0)
    flushed, based = sizes[True], sizes[False]
    new, old = sum(flushed), sum(based)
    due = (
        (len(flushed) >= _SOME and new >= 2 * max(old, MOST))
        or (len(flushed) >= _MANY and 2 * new >= old)
        or len(flushed) >= _TOO_MANY
    )
    return due and merge_chunks(warehouse, run, name)


def merge_chunks(
    warehouse: Warehouse, run: str, name: str, keep: Callable[[Ids], np.ndarray[Any, np.dtype[np.bool_]]] | None = None
) -> bool:
    """Merge the chunks of a number into as few as possible.

    Args:
        warehouse: The warehouse.
        run: The run.
        name: The number.
        keep: Says which samples stay.

    Returns:
        Whether it has; not if another process was faster, or the run was deleted meanwhile.
    """
    collection, of = warehouse.index["feedback"], _of(warehouse, run, name)
    state = {"_id": _state_id(warehouse, run, name)}
    _once(warehouse, lambda: collection.insert_one({**state, **of, "g": _STATE, "base": None}))
    found, before = _read(warehouse, run, name)
    moments = merged([_moments(doc) for doc in found])
    if keep is not None:
        moments = moments.take(keep(moments.ids))
    after = ObjectId()
    written = [_document(warehouse, run, name, moments.take(rows), after) for rows in _slices(len(moments))]
    for document in written:
        insert_chunk(warehouse, document)

    def commit(session: ClientSession | None) -> bool:
        flushed = [doc["_id"] for doc in found if doc["g"] is None]
        change = {"$set": {"base": after}, "$push": {"merged": {"$each": flushed, "$slice": -_REMEMBERED}}}
        if not collection.update_one({**state, "base": before}, change, session=session).modified_count:
            return False
        for some in chunks([doc["_id"] for doc in found], 1000):
            collection.delete_many({"_id": {"$in": list(some)}}, session=session)
        return True

    done = warehouse.index.transaction(commit)
    lost = {**of, "g": {"$nin": [None, _STATE, after, before]}, "at": {"$lt": _now() - _ABANDONED}}
    warehouse.index.write(lambda: collection.delete_many(lost if done else {**of, "g": after}))
    return done


def delete_feedback(warehouse: Warehouse, run: str) -> None:
    """Delete all that a run has told of samples."""
    of = {"p": warehouse.project, "r": run}

    def body(session: ClientSession | None) -> None:
        warehouse.index["feedback"].delete_many(of, session=session)

    warehouse.index.make("feedback")
    warehouse.index.transaction(body)


def all_numbers(warehouse: Warehouse) -> list[tuple[str, str]]:
    """The runs and names of all feedback of the project."""
    of = {"p": warehouse.project, "g": {"$ne": _STATE}}
    stages: list[dict[str, Any]] = [{"$match": of}, {"$group": {"_id": {"r": "$r", "m": "$m"}}}]
    found = retry_while_unavailable(lambda: list(warehouse.index["feedback"].aggregate(stages)), reads=True)
    pairs = ((each["_id"].get("r"), each["_id"].get("m")) for each in found)
    return sorted((run, name) for run, name in pairs if isinstance(run, str) and isinstance(name, str))


def _read(warehouse: Warehouse, run: str, name: str) -> tuple[list[dict[str, Any]], Any]:
    """The chunks that count, the base first and then in the order of time; and what the base is."""
    base = _base(warehouse, run, name)
    for _ in range(_ATTEMPTS):
        of = {**_of(warehouse, run, name), "g": {"$in": [None, base]}}
        found = retry_while_unavailable(lambda of=of: list(warehouse.index["feedback"].find(of)), reads=True)  # type: ignore[misc]
        now = _base(warehouse, run, name)
        if now == base:
            for doc in found:
                doc.setdefault("g", None)
            return sorted(found, key=_order), base
        base = now
    raise BusyError(
        f"the feedback {name!r} of run {run!r} was merged each of the {_ATTEMPTS} times that it was read; try again"
    )


def _order(doc: Mapping[str, Any]) -> tuple[bool, dt.datetime, str]:
    at = doc.get("at")
    return doc["g"] is None, at if isinstance(at, dt.datetime) else dt.datetime.min, str(doc["_id"])


def _base(warehouse: Warehouse, run: str, name: str) -> Any:
    state = {"_id": _state_id(warehouse, run, name)}
    found = retry_while_unavailable(lambda: warehouse.index["feedback"].find_one(state, {"base": 1}), reads=True)
    base = (found or {}).get("base")
    return base if isinstance(base, ObjectId) else None


def _document(warehouse: Warehouse, run: str, name: str, moments: Moments, base: ObjectId | None) -> dict[str, Any]:
    columns = {column: getattr(moments, column).astype(kind).tobytes() for column, kind in _COLUMNS.items()}
    head = {"_id": ObjectId(), **_of(warehouse, run, name), "g": base, "at": _now(), "n": len(moments)}
    return {**head, "ids": moments.ids.tobytes(), **columns}


def _moments(doc: Mapping[str, Any]) -> Moments:
    """The moments in a document, which anybody may have written."""
    try:
        ids = np.frombuffer(doc["ids"], "S12")
        columns = {column: np.frombuffer(doc[column], kind) for column, kind in _COLUMNS.items()}
        sizes = {len(column) for column in columns.values()}
        if sizes != {len(ids)} or (len(ids) and int(columns["count"].min()) < 1):
            raise ValueError(f"expected {len(ids)} samples with counts of at least 1, found columns of {sorted(sizes)}")
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"the feedback {doc.get('m')!r} of run {doc.get('r')!r} is damaged, in the document {doc.get('_id')} of the"
            f" collection `feedback` ({type(error).__name__}: {error}): delete this document, or the run"
        ) from None
    count, mean, squares, last = columns.values()
    return Moments(ids, count, mean, squares, last)


def _slices(n: int) -> Sequence[slice]:
    return [slice(low, low + MOST) for low in range(0, n, MOST)]


def _of(warehouse: Warehouse, run: str, name: str) -> dict[str, Any]:
    return {"p": warehouse.project, "r": run, "m": name}


def _state_id(warehouse: Warehouse, run: str, name: str) -> dict[str, Any]:
    return _of(warehouse, run, name)


def _once(warehouse: Warehouse, insert: Callable[[], object]) -> None:
    def attempt() -> None:
        try:
            insert()
        except DuplicateKeyError:  # an attempt whose answer was lost
            pass

    warehouse.index.write(attempt)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc).replace(tzinfo=None)
