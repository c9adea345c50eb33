"""Aggregation pipelines of users: which stages there are, and the selected entities as their input.

The first stages are ours: those of the project that match the filter, the fields that the query names, and nothing that
is internal. What follows sees no more than these, as no stage is allowed that reads or writes anything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tensordb_data.common.bson_values import plain
from tensordb_data.common.options import nearest
from tensordb_data.errors import QueryError
from tensordb_data.mongo.retry import retry_while_unavailable
from tensordb_data.query.blob_filters import mentioned
from tensordb_data.query.metric_order import metrics_of, ordered
from tensordb_data.query.query import clean_filter, refuse_internal
from tensordb_data.warehouse.bound_query import BoundQuery, reported

STAGES = frozenset((
    "$addFields", "$bucket", "$bucketAuto", "$count", "$densify", "$facet", "$fill", "$group", "$limit", "$match",
    "$project", "$redact", "$replaceRoot", "$replaceWith", "$sample", "$set", "$setWindowFields", "$skip", "$sort",
    "$sortByCount", "$unset", "$unwind",
))  # fmt: skip
_WRITES = "writes into a collection; use update, annotate or a writer"
_READS = "reads other collections, and so other projects; ask each collection, and join in Python"
_SERVER = "reads what belongs to the server and not to the Selection"
REFUSED = {
    "$out": _WRITES, "$merge": _WRITES,
    "$lookup": _READS, "$graphLookup": _READS, "$unionWith": _READS,
    "$currentOp": _SERVER, "$collStats": _SERVER, "$indexStats": _SERVER, "$planCacheStats": _SERVER,
    "$listSessions": _SERVER, "$listLocalSessions": _SERVER, "$listSampledQueries": _SERVER,
    "$shardedDataDistribution": _SERVER, "$changeStream": _SERVER, "$querySettings": _SERVER, "$queryStats": _SERVER,
    "$documents": "makes documents; there is nothing of the Selection in them",
    "$geoNear": "must be the first stage, which is the Selection's; sort by a distance that you compute with $set",
    "$search": "must be the first stage, which is the Selection's; use db.search", "$searchMeta": "is no stage here",
    "$vectorSearch": "must be the first stage, which is the Selection's",
}  # fmt: skip
"""Stages that are refused wherever they stand, and why."""
_META = frozenset(("textScore",))  # of what an entity matched; the others are of the index
_ANEW = frozenset((
    "$bucket", "$bucketAuto", "$count", "$facet", "$group", "$replaceRoot", "$replaceWith", "$sortByCount",
))  # fmt: skip
_ADDS = frozenset(("$set", "$addFields", "$project"))
_ENTITY = ("$$ROOT.", "$$CURRENT.")


def aggregate(bound: BoundQuery, pipeline: object) -> list[dict[str, Any]]:
    """See `Selection.aggregate`."""
    stages = clean_pipeline(pipeline)
    if bound.query.limit is None:
        # They see blobs as a filter does, and ids as texts; the server would put them first, too.
        while stages and "$match" in stages[0]:
            match = stages.pop(0)["$match"]
            bound = bound.narrowed(match) if match else bound
    if bound.query.collection == "data":
        bound.refuse_blobs(_fields(stages), "aggregate")
    with reported(bound.query):
        whole = [*_selected(bound), *stages]
        return retry_while_unavailable(
            lambda: list(bound.collection.aggregate(whole, allowDiskUse=True, **bound.time_limit)), reads=True
        )


def clean_pipeline(pipeline: object) -> list[dict[str, Any]]:
    """A checked deep copy of a pipeline.

    Raises:
        QueryError: It is malformed, or has a stage or an operator that is refused.
    """
    if isinstance(pipeline, (str, bytes, Mapping)) or not isinstance(pipeline, Sequence):
        hint = f"; write [{pipeline!r:.100}]" if isinstance(pipeline, Mapping) else ""
        raise QueryError(
            f'a pipeline is a list of stages such as [{{"$group": {{"_id": "$label"}}}}]; found '
            f"{type(pipeline).__name__}{hint}"
        )
    stages = [_stage(stage, i) for i, stage in enumerate(pipeline)]
    _refuse(stages)
    refuse_internal(stages, True)
    return stages


def _stage(stage: object, i: int) -> dict[str, Any]:
    if not isinstance(stage, Mapping) or len(stage) != 1:
        raise QueryError(f'pipeline, stage {i}: a stage is a dict with one key, such as {{"$limit": 5}}; '
                         f"found {stage!r:.200}")  # fmt: skip
    _refuse(stage)
    cleaned: dict[str, Any] = plain(stage, lambda text: QueryError(f"pipeline, stage {i}: {text}"), filter=True)
    ((name, body),) = cleaned.items()
    if name not in STAGES:
        raise QueryError(f"pipeline, stage {i}: there is no stage {name!r}{nearest(name, STAGES)}")
    if name == "$match":
        return {name: clean_filter(body)}
    if name == "$facet":
        if not isinstance(body, dict):
            raise QueryError(f"pipeline, stage {i}: $facet takes a dict of name to pipeline; found {body!r:.200}")
        return {name: {key: clean_pipeline(inner) for key, inner in body.items()}}
    return cleaned


def _refuse(value: Any) -> None:
    """Refuse stages that reach beyond the Selection, wherever they stand: some take pipelines of their own."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(key, str) and key in REFUSED:
                raise QueryError(f"{key} is refused: it {REFUSED[key]}")
            if key == "$meta" and item not in _META:
                raise QueryError(f"$meta {item!r:.100} is refused: there is {', '.join(sorted(_META))}")
            _refuse(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _refuse(item)


def _selected(bound: BoundQuery) -> list[dict[str, Any]]:
    """The stages that give the selected entities, without what is internal."""
    query, filter = bound.query, bound.filter()
    stages: list[dict[str, Any]] = [{"$match": filter}]
    if query.sort is not None or query.limit is not None:
        if query.collection == "params" and metrics_of(query.sort) and bound.warehouse.index.is_server:
            stages = ordered(filter, query.sort or (), query.limit)
        else:
            stages += [{"$sort": dict(bound.sort())}, *([] if query.limit is None else [{"$limit": query.limit}])]
    projection = bound.projection()
    shown = {"_tdb": 0}
    if projection is not None:
        shown = {name: 1 for name in projection if name.split(".")[0] != "_tdb"}
    return [*stages, {"$project": shown}]


def _fields(stages: Sequence[Mapping[str, Any]]) -> set[str]:
    """The top-level fields of the entities that stages look at; of those that earlier stages have made, none."""
    found: set[str] = set()
    made: set[str] = set()
    for stage in stages:
        ((name, body),) = stage.items()
        found |= set(_looked_at(name, body)) - made
        if name in _ANEW:
            break
        if name in _ADDS and isinstance(body, dict):
            made |= {key.split(".")[0] for key, value in body.items() if not isinstance(value, (int, float))}
    return found


def _looked_at(stage: str, body: Any) -> Iterator[str]:
    if stage == "$facet":
        for inner in body.values():
            yield from _fields(inner)
        return
    if stage == "$match":
        yield from mentioned(body)
    elif stage == "$sort" and isinstance(body, dict):
        yield from (key.split(".")[0] for key in body)
    elif stage == "$project" and isinstance(body, dict):
        yield from (key.split(".")[0] for key, value in body.items() if value in (1, True))
    yield from _references(body)


def _references(value: Any) -> Iterator[str]:
    """The fields that expressions name as `$field`."""
    if isinstance(value, dict):
        for key, item in value.items():
            name = item.get("field") if isinstance(item, dict) else item
            if key == "$getField" and isinstance(name, str):
                yield name
            if key != "$literal":
                yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)
    elif isinstance(value, str) and value.startswith("$"):
        root = next((value[len(prefix) :] for prefix in _ENTITY if value.startswith(prefix)), value[1:])
        if not root.startswith("$"):
            yield root.split(".")[0]
