"""List runs: what their documents, rows and parameter sets say of each, found by a filter over all of this.

Runs of version 0.1 have rows and sets, and no document. They are listed too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import bson
from pymongo.errors import OperationFailure

from tensordb_data.common.system.process_identity import has_ended
from tensordb_data.errors import QueryError, UnsupportedError
from tensordb_data.mongo.errors import first_line
from tensordb_data.mongo.retry import retry_while_unavailable
from tensordb_data.runs.documents import LEFT, attempts_of
from tensordb_data.runs.metrics import Metrics, read_metrics

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

Doc = dict[str, Any]

_TOGETHER = 4_000_000  # bytes of runs that the server looks through at once
_PLACE = "_tdb_place"
_READ = ("last", "best")
"""Fields for which all rows of a run are read."""


@dataclass(frozen=True)
class RunQuery:
    """Which runs, in which order. The values are checked already."""

    filter: Mapping[str, Any]
    sort: Sequence[tuple[str, int]] | None
    limit: int | None

    @property
    def brief(self) -> str:
        """For messages."""
        text = f"runs({dict(self.filter)!r})"
        return text if len(text) <= 300 else f"{text[:297]}..."


def list_runs(warehouse: Warehouse, query: RunQuery, *, metrics: bool = True) -> list[Doc]:
    """The runs that match.

    Args:
        warehouse: The warehouse.
        query: The query.
        metrics: Whether to fill in `last` and `best`, if filter and sort do not need them.

    Raises:
        QueryError: The server refused the filter.
        UnsupportedError: There is no server.
    """
    if not warehouse.index.is_server:
        raise UnsupportedError("mongomock cannot list runs; use a real server")
    found = _matching(warehouse, _known(warehouse, query.filter), _first_part(query.filter), query)
    asked = {name.split(".")[0] for name, _ in query.sort or ()} & set(_READ)
    first = dict(query.filter) == _first_part(query.filter)
    if metrics and query.limit is not None and first and not asked:
        return _with_metrics(warehouse, _ordered(found, query.sort)[: query.limit])
    if metrics or asked or not first:
        found = _with_metrics(warehouse, found)
    if not first:
        found = _matching(warehouse, found, query.filter, query)
    return _ordered(found, query.sort)[: query.limit]


def _known(warehouse: Warehouse, filter: Mapping[str, Any]) -> list[Doc]:
    """All that can match, without metrics."""
    name = filter.get("name")
    named = name["$in"] if isinstance(name, Mapping) and set(name) == {"$in"} else [name]
    exact = all(isinstance(each, str) for each in named)
    scope = {"_tdb.p": warehouse.project}
    runs, logs, params = (warehouse.index[each] for each in ("runs", "logs", "params"))
    stages: list[Doc] = [
        {"$match": {**scope, "name": {"$in": named} if exact else {"$type": "string"}}},
        {"$set": {"left": LEFT}},
    ]
    of = {**scope, "run": {"$in": named} if exact else {"$type": "string"}}
    sets: list[Doc] = [
        {"$match": of},
        {"$group": {
            "_id": "$run", "sets": {"$sum": 1}, "bytes": {"$sum": "$_tdb.bytes"},
            "newest": {"$max": {"s": "$_tdb.s", "lineage": "$lineage"}},
        }},
    ]  # fmt: skip
    documents = retry_while_unavailable(lambda: list(runs.aggregate(stages)), reads=True)
    counted = retry_while_unavailable(lambda: list(params.aggregate(sets, allowDiskUse=True)), reads=True)
    # Without a condition on the type, the server reads one key of the index for each run, and not one for each row.
    logged = retry_while_unavailable(lambda: logs.distinct("run", of if exact else scope), reads=True)
    of_sets = {each["_id"]: each for each in counted}
    by_name = {each["name"]: each for each in documents}
    names = {*by_name, *of_sets, *(each for each in logged if isinstance(each, str))}
    return [_described(name, by_name.get(name, {}), of_sets.get(name, {})) for name in sorted(names)]


def _described(name: str, document: Mapping[str, Any], sets: Mapping[str, Any]) -> Doc:
    attempts = [dict(each) for each in attempts_of(document)]
    if attempts and attempts[-1].get("state") == "running":
        claim = document["_tdb"].get("saver")
        if (document.get("left") or 0) <= 0 or has_ended(claim.get("process") if isinstance(claim, dict) else None):
            attempts[-1]["state"] = "lost"
    newest = attempts[-1] if attempts else {}
    return {
        "_id": document.get("_id"), "name": name, "tags": _kept(document, "tags", list),
        "status": newest.get("state"), "began": attempts[0].get("began") if attempts else None,
        "ended": newest.get("ended"), "host": newest.get("host"), "pid": newest.get("pid"),
        "config": _kept(document, "config", dict), "imported": _kept(document, "imported", dict),
        "sets": sets.get("sets", 0), "bytes": sets.get("bytes", 0), "attempts": attempts,
        "lineage": (sets.get("newest") or {}).get("lineage") or {}, "last": {}, "best": {},
    }  # fmt: skip


def _kept(document: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    """A field, or an empty one where another tool has written something else."""
    found = document.get(name)
    return found if isinstance(found, kind) else kind()


def _with_metrics(warehouse: Warehouse, runs: Sequence[Doc]) -> list[Doc]:
    found = read_metrics(warehouse, {each["name"]: each["attempts"] for each in runs}) if runs else {}
    known = [found.get(each["name"], Metrics()) for each in runs]
    return [{**each, "last": one.last, "best": one.best} for each, one in zip(runs, known, strict=True)]


def _first_part(filter: Mapping[str, Any]) -> Doc:
    """The conditions that can be answered before the rows are read."""
    return {key: value for key, value in filter.items() if key[:1] != "$" and key.split(".")[0] not in _READ}


def _matching(warehouse: Warehouse, runs: Sequence[Doc], filter: Mapping[str, Any], query: RunQuery) -> list[Doc]:
    """Those that match, by the server, which knows its query language."""
    if not filter:
        return list(runs)
    found: list[Doc] = []
    for some in _portions(runs):
        listed = [{**each, _PLACE: place} for place, each in enumerate(some)]
        stages: list[Doc] = [
            {"$limit": 1}, {"$project": {"_id": 0, "run": {"$literal": listed}}}, {"$unwind": "$run"},
            {"$replaceRoot": {"newRoot": "$run"}}, {"$match": dict(filter)}, {"$project": {"_id": 0, _PLACE: 1}},
        ]  # fmt: skip
        try:
            places = retry_while_unavailable(functools.partial(_places, warehouse, stages), reads=True)
        except OperationFailure as error:
            raise QueryError(f"the server refused {query.brief}: {first_line(error)}") from error
        found += [some[place] for place in places]
    return found


def _places(warehouse: Warehouse, stages: Sequence[Doc]) -> list[int]:
    return [each[_PLACE] for each in warehouse.index["warehouse"].aggregate(stages)]


def _portions(runs: Sequence[Doc]) -> Iterator[list[Doc]]:
    some: list[Doc] = []
    size = 0
    for each in runs:
        some.append(each)
        size += len(bson.encode(each))
        if size > _TOGETHER:
            yield some
            some, size = [], 0
    if some:
        yield some


def _ordered(runs: Sequence[Doc], sort: Sequence[tuple[str, int]] | None) -> list[Doc]:
    """By name without a sort. Numbers come before texts, and what is missing or NaN comes last, in both directions."""
    found = list(runs)
    for name, direction in reversed(sort or ()):
        keys = [_key(_value(each, name), direction) for each in found]
        there = [(key, place) for place, key in enumerate(keys) if key is not None]
        there.sort(key=lambda pair: pair[0], reverse=direction < 0)
        last = [place for place, key in enumerate(keys) if key is None]
        found = [found[place] for place in [*(place for _, place in there), *last]]
    return found


def _value(run: Any, path: str) -> Any:
    for part in path.split("."):
        run = run.get(part) if isinstance(run, Mapping) else None
    return run


def _key(value: Any, direction: int) -> tuple[Any, ...] | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, (bool, int, float)):
        return (0, value)
    return (direction, type(value).__name__, value if hasattr(value, "__lt__") and not isinstance(value, (list, dict))
            else repr(value))  # fmt: skip
