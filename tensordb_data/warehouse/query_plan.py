"""How the server answers a query, and when to say that an index would help."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pymongo.errors import PyMongoError

from tensordb_data.errors import ScanWarning, UnsupportedError
from tensordb_data.query.datasets import selected_datasets
from tensordb_data.query.query import names

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery

LARGE = 100_000
_SELECTIVE = 10  # a scan that returns more than one in so many of what it reads needs no index

_seen: set[tuple[Any, ...]] = set()


def explain(selection: BoundQuery) -> dict[str, Any]:
    """A short account of the server's plan; see `Selection.explain`."""
    if not selection.warehouse.index.is_server:
        raise UnsupportedError("mongomock has no query planner; use a real server")
    raw = _explain(selection, "executionStats")
    stats = raw["executionStats"]
    stages = list(_stages(raw["queryPlanner"]["winningPlan"]))
    scans = [
        stage
        for stage in stages
        if stage.get("stage") in ("IXSCAN", "IDHACK", "COLLSCAN", "COUNT_SCAN", "DISTINCT_SCAN")
    ]
    first: Mapping[str, Any] = scans[0] if scans else {}
    return {
        "collection": selection.query.collection,
        "stage": first.get("stage", stages[0].get("stage") if stages else None),
        "index": first.get("indexName"),
        "keys_examined": stats["totalKeysExamined"],
        "docs_examined": stats["totalDocsExamined"],
        "returned": stats["nReturned"],
        "milliseconds": stats["executionTimeMillis"],
        "raw": raw,
    }


def warn_of_scan(selection: BoundQuery) -> None:
    """Say once for each shape of query that it scans a large collection, and which index would help."""
    with contextlib.suppress(PyMongoError):  # this is advice: the read that follows says what is wrong
        _warn_of_scan(selection)


def _warn_of_scan(selection: BoundQuery) -> None:
    query = selection.query
    if query.split is not None:
        return
    asked = names(query.filter)
    if not selection.warehouse.index.is_server or not asked or not asked - {"dataset", "_id"} or "_id" in asked:
        return
    asked = names(selection.translated) or set()
    shape = (query.collection, tuple(sorted(_shape(query.filter))))
    if shape in _seen:
        return
    size = _scanned(selection)
    if size < LARGE:
        return
    _seen.add(shape)
    wanted = sorted(asked - {"dataset", "_id", "_tdb"})
    if not wanted or any(
        _served(stage, wanted) for stage in _stages(_explain(selection, "queryPlanner")["queryPlanner"]["winningPlan"])
    ):
        return
    bound = size // _SELECTIVE
    if selection.collection.count_documents(selection.filter(), limit=bound) >= bound:
        return
    fields = (["dataset"] if "dataset" in asked and query.collection == "data" else []) + wanted
    warnings.warn(
        f"{query.brief} reads about {size:,} documents of {query.collection!r} to find fewer than {bound:,}: no index "
        f"has {' or '.join(map(repr, wanted))}; db.{query.collection}.create_index({fields!r}) would help",
        ScanWarning,
        stacklevel=5,
    )


def narrowing_index(selection: BoundQuery, filter: Mapping[str, Any], size: int) -> str | None:
    """The index through which few of `size` samples of a dataset are found that match `filter`, and put in order before
    their documents are read; None where there is no such index, or where not few of them match.

    The server would find it, but for large datasets: it compares its plans by how soon the first hundred samples come,
    and these come sooner from a scan in order of sequence, whatever is to be read for the others.
    """
    wanted = sorted((names(selection.translated) or set()) - {"dataset", "_id", "_tdb"})
    if not selection.warehouse.index.is_server or size < LARGE or not wanted:
        return None
    command = {"find": "data", "filter": dict(filter)}
    plan = selection.warehouse.index.database.command("explain", command, verbosity="queryPlanner")["queryPlanner"][
        "winningPlan"
    ]
    scans = [stage for stage in _stages(plan) if stage.get("stage") == "IXSCAN"]
    if len(scans) != 1 or list(scans[0]["keyPattern"])[-1] != "_tdb.s" or not _served(scans[0], wanted):
        return None
    index, bound = str(scans[0]["indexName"]), size // _SELECTIVE
    few = selection.collection.count_documents(filter, hint=index, limit=bound) < bound
    return index if few else None


def _scanned(selection: BoundQuery) -> int:
    """About how many documents a scan within project and datasets reads."""
    size = int(selection.collection.estimated_document_count())
    if size < LARGE or selection.query.collection != "data":
        return size
    written = selection.warehouse.datasets.versions(selected_datasets(selection.query.filter))
    return min(size, sum(sequence for sequence, _ in written.values()))


def _explain(selection: BoundQuery, verbosity: str) -> dict[str, Any]:
    query = selection.query
    command: dict[str, Any] = {"find": query.collection, "filter": selection.filter(), "sort": dict(selection.sort())}
    if query.limit is not None:
        command["limit"] = query.limit
    return dict(selection.warehouse.index.database.command("explain", command, verbosity=verbosity))


def _stages(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every stage of a plan, the innermost first."""
    for key in ("queryPlan", "inputStage", "outerStage", "innerStage", "thenStage", "elseStage", "winningPlan"):
        if isinstance(plan.get(key), Mapping):
            yield from _stages(plan[key])
    for key in ("inputStages", "shards"):
        for inner in plan.get(key, ()):
            yield from _stages(inner)
    if "stage" in plan:
        yield plan


def _served(stage: Mapping[str, Any], wanted: list[str]) -> bool:
    """Whether an index narrows the search by one of the fields."""
    if stage.get("stage") not in ("IXSCAN", "COUNT_SCAN", "DISTINCT_SCAN"):
        return stage.get("stage") in ("TEXT", "TEXT_MATCH", "GEO_NEAR_2DSPHERE", "IDHACK")
    bounds = stage.get("indexBounds", {})
    return any(
        key.split(".")[0] in wanted and list(intervals) != ["[MinKey, MaxKey]"] for key, intervals in bounds.items()
    )


def _shape(filter: Any, path: str = "") -> Iterator[str]:
    if isinstance(filter, Mapping):
        for key, value in filter.items():
            yield from _shape(value, f"{path}/{key}")
    elif isinstance(filter, list):
        for value in filter:
            yield from _shape(value, path) if isinstance(value, Mapping) else (path,)
    else:
        yield path
