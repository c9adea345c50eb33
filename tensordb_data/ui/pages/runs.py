"""The page of runs: a table, curves of some of them, and what differs between those."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import QueryError
from tensordb_data.jobs.run_name import job_of_run
from tensordb_data.mongo.retry import within
from tensordb_data.runs.listing import list_runs
from tensordb_data.ui.parts.links import flat, parsed, parsed_sort, stored_query
from tensordb_data.ui.parts.tails import tail
from tensordb_data.ui.view import timed_out
from tensordb_data.warehouse.metrics import less_is_better

if TYPE_CHECKING:
    from starlette.responses import Response

    from tensordb_data.ui.view import View

_SHOWN = 200
_CHOSEN = 3  # of the newest, where none was asked for
MOST_CHOSEN = 32
_METRIC_SECONDS = 0.7  # for the values of all runs; of those that are chosen alone they take less
_LATE_SECONDS = 60.0  # for which metrics that took too long are not asked for again


def runs(view: View) -> Response:
    """`./runs`: see the module."""
    wrong = None
    try:
        query = view.db.runs(parsed(view.one("q")), sort=parsed_sort(view.many("sort")) or [("began", -1)]).query
        found, complete = _listed(view, query)
    except QueryError as error:
        found, complete, wrong = [], True, view.window.redact(error)
    wanted = view.many("run", MOST_CHOSEN)
    names = wanted or [each["name"] for each in found[:_CHOSEN]]
    chosen = _chosen(view, found, names)
    tails = {each["name"]: tail(view, each["name"]) for each in chosen}
    if not complete:
        chosen = [{**each, "last": tails[each["name"]].metrics} for each in chosen]
        own = {each["name"]: each for each in chosen}
        found = [dict(own.get(each["name"], each)) for each in found]
    metrics = sorted(
        {name for each in chosen for name in each["last"]} | {n for t in tails.values() for n in t.metrics}
    )
    metric = view.one("metric") or ("loss" if "loss" in metrics else metrics[0] if metrics else "")
    rows: list[Mapping[str, Any]] = [*found[:_SHOWN]]
    seen = {each["name"] for each in found[:_SHOWN]}
    rows = [*rows, *(each for each in chosen if each["name"] not in seen)]
    missing = [name for name in wanted if name not in {each["name"] for each in chosen}]
    return view.page(
        "runs.html", 400 if wrong else 200, rows=rows, n=len(found), complete=complete, wrong=wrong,
        chosen=[each["name"] for each in chosen], missing=missing, tails=tails, metrics=metrics, metric=metric,
        details=[(each, _lineage(view, each)) for each in chosen], less=less_is_better(metric) if metric else False,
        kinds=sorted({kind for each in tails.values() for kind in each.kinds}), kind=view.one("kind"),
        smooth=view.one("smooth"), log=bool(view.one("log")), q=view.one("q"), sort=view.many("sort"),
        differences=differences(chosen),
    )  # fmt: skip


def _listed(view: View, query: Any) -> tuple[list[dict[str, Any]], bool]:
    """The runs, and whether their metrics could be read in time."""
    late = view.window.late
    if time.monotonic() - late.get(view.db.project, -_LATE_SECONDS) >= _LATE_SECONDS:
        try:
            with within(_METRIC_SECONDS):
                return list_runs(view.db.warehouse, query), True
        except Exception as error:
            if not timed_out(error):
                raise
            late[view.db.project] = time.monotonic()
    return list_runs(view.db.warehouse, query, metrics=False), False


def _chosen(view: View, found: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Mapping[str, Any]]:
    known = {each["name"]: each for each in found}
    if any(name not in known for name in names):
        query = view.db.runs({"name": {"$in": list(names)}}).query
        known |= {each["name"]: each for each in _listed(view, query)[0]}
    return [known[name] for name in names if name in known]


def differences(chosen: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The parts of the configurations that are not the same in all runs; of a single run, all."""
    configs = [flat(each["config"]) for each in chosen]
    names = dict.fromkeys(name for config in configs for name in config)
    rows = {name: [config.get(name) for config in configs] for name in names}
    return {
        name: values
        for name, values in rows.items()
        if len(configs) == 1 or any(repr(value) != repr(values[0]) for value in values)
    }


def _lineage(view: View, run: Mapping[str, Any]) -> dict[str, Any]:
    lineage = run["lineage"] if isinstance(run["lineage"], Mapping) else {}
    data = lineage.get("data")
    queries = [
        (*stored_query(view, each.get("query")), each)
        for each in (data if isinstance(data, list) else ())
        if isinstance(each, Mapping)
    ]
    code = lineage.get("code")
    return {
        "queries": queries, "parent": lineage.get("parent"), "code": code if isinstance(code, Mapping) else {},
        "job": job_of_run(run["name"]),
    }  # fmt: skip
