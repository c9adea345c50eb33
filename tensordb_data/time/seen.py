"""Which checkpoints have seen some samples, and which were scored on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import NotFoundError, QueryError
from tensordb_data.frozen.bound_query import bind
from tensordb_data.mongo.retry import read_all
from tensordb_data.query.query import Query
from tensordb_data.schema.schema import PROVENANCE
from tensordb_data.time.delivered import delivered
from tensordb_data.time.ids import Ids, matched, packed_ids, unique_ids

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery

Doc = Mapping[str, Any]


def trained_on(bound: BoundQuery) -> list[Doc]:
    """The documents of the sets that have seen any of some samples; see `Params.trained_on`."""
    ids, warehouse = _ids(bound), bound.warehouse
    filter = {"_tdb.p": warehouse.project, "_tdb.parts": "stream", "lineage.data.0": {"$exists": True}}
    docs = read_all(warehouse.index["params"].find(filter).sort([("run", 1), ("_tdb.s", 1)]))
    lines: dict[Any, int] = {}  # of each line, the step from which its sets have seen one: what is seen stays seen
    found = []
    for doc in docs:
        line, step = (doc.get("run"), doc["_tdb"].get("line")), doc.get("step")
        known = lines.get(line)
        if known is not None and step is not None and doc["_tdb"].get("line") is not None and step >= known:
            found.append(doc)
        elif _has_seen(bound, doc, ids):
            found.append(doc)
            if step is not None:
                lines[line] = min(step, lines.get(line, step))
    return sorted(found, key=lambda doc: doc["_id"])


def _has_seen(bound: BoundQuery, doc: Doc, ids: Ids) -> bool:
    try:
        return bool(len(matched(delivered(bound.warehouse, doc).packed, ids)[0]))
    except NotFoundError:
        return False


def scored_on(bound: BoundQuery) -> list[Doc]:
    """The documents of the sets with a metric that was found on any of some samples; see `Params.scored_on`."""
    ids, warehouse = _ids(bound), bound.warehouse
    known: dict[str, bool] = {}
    found = []
    filter = {"_tdb.p": warehouse.project, PROVENANCE: {"$type": "object"}}
    for doc in read_all(warehouse.index["params"].find(filter).sort("_id", 1)):
        for text in _queries(doc):
            if text not in known:
                known[text] = _shares(bound, text, ids)
            if known[text]:
                found.append(doc)
                break
    return found


def _queries(doc: Doc) -> Iterator[str]:
    for by in doc[PROVENANCE].values():
        text = by.get("data") if isinstance(by, Mapping) else None
        if isinstance(text, str):
            yield text


def _shares(bound: BoundQuery, text: str, ids: Ids) -> bool:
    try:
        query = Query.from_json(text)
        if query.collection != "data":
            return False
        return bool(len(matched(_ids(bind(bound.warehouse, query)), ids)[0]))
    except (QueryError, NotFoundError):  # another tool has written it, or the set was dropped
        return False


def _ids(bound: BoundQuery) -> Ids:
    return unique_ids(packed_ids(bound.ids()))[0]
