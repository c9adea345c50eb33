"""Keep the search index up to date during an update."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tensordb_data.common.chunks import chunks
from tensordb_data.mongo.retry import read_all, retry_while_unavailable
from tensordb_data.search.index import GROUPED, Group, search_index

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery

_CHUNK = 5000


@contextlib.contextmanager
def reindexing(selection: BoundQuery, update: Mapping[str, Any]) -> Iterator[None]:
    """Write the entries of the new tags and texts of an update, which takes place within this block."""
    set_ = update.get("$set", {})
    touched = any("tags" in fields for fields in update.values()) or any(isinstance(v, str) for v in set_.values())
    if not touched:
        yield
        return
    entries, kind = search_index(selection.warehouse, selection.query.collection), selection.query.collection
    if kind in GROUPED:
        groups = {(name, changed(tags, update)): member for (name, tags), member in _groups(selection).items()}
        new = [(field, value) for field, value in set_.items() if isinstance(value, str)]
        texts = {(name, *text): member for (name, _), member in groups.items() for text in new}
        retry_while_unavailable(lambda: entries.add_groups(groups, texts))
        yield
        return
    ids = selection.ids()
    yield
    for some in chunks(ids, _CHUNK):
        chosen = {"_id": {"$in": some}, "_tdb.p": selection.warehouse.project}
        entries.add_entities(read_all(selection.collection.find(chosen)))


def _groups(selection: BoundQuery) -> dict[Group, Any]:
    return retry_while_unavailable(lambda: selected_groups(selection), reads=True)


def selected_groups(selection: BoundQuery) -> dict[Group, Any]:
    """The groups of the selected samples or rows, `(name, tags)`, each with the `_id` of one entity in it."""
    group = {"_id": {"n": f"${GROUPED[selection.query.collection]}", "t": "$tags"}, "one": {"$first": "$_id"}}
    found = itertools.chain.from_iterable(
        selection.collection.aggregate([{"$match": filter}, {"$group": group}], allowDiskUse=True)
        for filter in selection.within_limit()
    )
    named = ((doc["_id"], doc["one"]) for doc in found)
    return {(of["n"], tuple(of.get("t") or ())): one for of, one in named if of.get("n") is not None}


def changed(tags: tuple[str, ...], update: Mapping[str, Any]) -> tuple[str, ...]:
    """The tags after an update by `tag` or `untag`."""
    now = list(tags)
    for operator, fields in update.items():
        value = fields.get("tags")
        if value is None:
            continue
        if operator == "$addToSet":
            now += [tag for tag in value["$each"] if tag not in now]
        elif operator == "$pull":
            now = [tag for tag in now if tag not in value["$in"]]
    return tuple(now)
