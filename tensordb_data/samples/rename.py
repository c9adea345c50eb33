"""Rename and drop datasets, beside writers and readers.

The document of a dataset that goes is marked first, with `leaving: {to}`. From then on, no commit to it succeeds. A
call that was stopped at any step goes on when it is made again.

A rename makes the document of the new name in the transaction that marks the old one and announces a mutation of both.
Then it moves the samples, 10,000 in one transaction, and at last it removes the old document. The new one notes in
`was` where it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.common.options import nearest
from tensordb_data.errors import BusyError, DuplicateError, NotFoundError, QueryError
from tensordb_data.mongo.retry import read_all, retry_while_unavailable
from tensordb_data.query.query import Query
from tensordb_data.samples.arguments import check_dataset_name
from tensordb_data.samples.changes.entries import write_entry
from tensordb_data.samples.delete import delete_samples
from tensordb_data.samples.mutations import LIMIT, Mutation, end_silent
from tensordb_data.search.index import search_index
from tensordb_data.warehouse.bound_query import BoundQuery

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_OWN = ("_id", "open", "calm", "was")
"""Fields of a dataset's document that a new name does not take over."""


def rename(warehouse: Warehouse, old: str, new: str) -> int:
    """See `Data.rename`."""
    check_dataset_name(old)
    check_dataset_name(new)
    datasets, data = warehouse.index["datasets"], warehouse.index["data"]
    source = _one(datasets, {"_id": warehouse.datasets.id(old)})
    if source is None:
        if _one(datasets, {"_id": warehouse.datasets.id(new), "was": old}) is not None:
            return 0  # an earlier call has done it
        raise _unknown(warehouse, old)
    if source.get("open"):
        end_silent(warehouse, [entry["id"] for entry in source["open"]], [old])
    here = {"_tdb.p": warehouse.project, "dataset": old}

    def change(ids: Sequence[ObjectId], session: Any) -> int:
        moves = {"$set": {"dataset": new}}
        return int(data.update_many({**here, "_id": {"$in": list(ids)}}, moves, session=session).modified_count)

    moved = 0
    with Mutation(
        warehouse, "delete", [old, new], alone=False, prepare=lambda session: _begin(warehouse, old, new, session)
    ) as mutation:
        while docs := read_all(data.find(here, {"_tdb.b": 0}).limit(LIMIT)):
            search_index(warehouse, "data").add_documents([{**doc, "dataset": new} for doc in docs])
            moved += mutation.step([doc["_id"] for doc in docs], change)
        for name in ("segments", "tombstones", "sources", "changes"):
            of = {"p": warehouse.project, "dataset": old}
            retry_while_unavailable(partial(warehouse.index[name].update_many, of, {"$set": {"dataset": new}}))
    warehouse.index.transaction(partial(_end, warehouse, old, new))
    return moved


def drop(warehouse: Warehouse, name: str) -> int:
    """See `Data.drop`."""
    check_dataset_name(name)
    datasets, id = warehouse.index["datasets"], warehouse.datasets.id(name)
    there = {"_tdb.p": warehouse.project, "dataset": name}
    leaves = {"$set": {"leaving": {"to": None}}}
    retry_while_unavailable(lambda: datasets.update_one({"_id": id, "leaving": None}, leaves))
    found = _one(datasets, {"_id": id})
    if found is None and _one(warehouse.index["data"], there) is None:
        raise _unknown(warehouse, name)
    if found is not None and found.get("leaving", {}).get("to") is not None:
        raise _leaving(name, found["leaving"]["to"])
    count = 0
    while _one(warehouse.index["data"], there) is not None:
        count += delete_samples(BoundQuery(warehouse, Query("data", {"dataset": name})), log=False)
    of = {"p": warehouse.project, "dataset": name}
    # Before the dataset: one that is made anew under this name begins with an empty log.
    retry_while_unavailable(lambda: warehouse.index["changes"].delete_many(of))
    retry_while_unavailable(lambda: datasets.delete_one({"_id": id, "leaving": {"to": None}}))
    retry_while_unavailable(lambda: warehouse.index["sources"].delete_many(of))
    was = {"_id.p": warehouse.project, "was": name}  # that was another one
    retry_while_unavailable(lambda: datasets.update_many(was, {"$unset": {"was": ""}}))
    return count


def _begin(warehouse: Warehouse, old: str, new: str, session: Any) -> None:
    """In a transaction: mark the old document, and make the new one, unless a former call has done so."""
    datasets = warehouse.index["datasets"]
    source = datasets.find_one({"_id": warehouse.datasets.id(old)}, session=session)
    if source is None:
        raise NotFoundError(f"dataset {old!r} was renamed or dropped by another process meanwhile")
    if (leaving := source.get("leaving")) is not None:
        if leaving["to"] != new:
            raise _leaving(old, leaving["to"])
        return
    if source.get("open"):
        change = source["open"][0]
        raise BusyError(
            f"dataset {old!r} cannot be renamed while its samples are changed ({change['kind']} by process "
            f"{change['pid']} on {change['host']}): rename it when that has ended"
        )
    target = {"_tdb.p": warehouse.project, "dataset": new}
    if (
        datasets.find_one({"_id": warehouse.datasets.id(new)}, session=session) is not None
        or warehouse.index["data"].find_one(target, {"_id": 1}, session=session) is not None
    ):
        raise DuplicateError(f"there is a dataset {new!r} already: rename or drop it first, or choose another name")
    fields = {name: value for name, value in source.items() if name not in _OWN}
    identity = source.get("ids", old)  # see `warehouse.identity`
    about = {"_id": warehouse.datasets.id(new), **fields, "was": old, "ids": identity}
    datasets.insert_one(about, session=session)
    datasets.update_one({"_id": source["_id"]}, {"$set": {"leaving": {"to": new}}}, session=session)


def _end(warehouse: Warehouse, old: str, new: str, session: Any) -> None:
    """In a transaction: remove the old document, and note the rename, unless another call has done so."""
    leaves = {"_id": warehouse.datasets.id(old), "leaving.to": new}
    if warehouse.index["datasets"].delete_one(leaves, session=session).deleted_count:
        about = warehouse.datasets.counted([new], session).get(new)
        number = None if about is None else about["mut"]
        to = {"$rename": {"dataset": {"from": old, "to": new}}}
        write_entry(warehouse, new, "rename", number=number, count=0, session=session, update=to)


def _one(collection: Any, filter: Mapping[str, Any]) -> Any:
    return retry_while_unavailable(lambda: collection.find_one(filter), reads=True)


def _unknown(warehouse: Warehouse, name: str) -> NotFoundError:
    known = warehouse.datasets.versions()
    return NotFoundError(f"there is no dataset {name!r} in project {warehouse.project!r}{nearest(name, known)}")


def _leaving(name: str, to: str | None) -> QueryError:
    what, call = ("dropped", f"drop({name!r})") if to is None else (f"renamed to {to!r}", f"rename({name!r}, {to!r})")
    return QueryError(f"dataset {name!r} is being {what}; if that was stopped, call db.data.{call} to end it")
