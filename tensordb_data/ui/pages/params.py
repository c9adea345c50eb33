"""The pages of parameter sets: a table of them, and one set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import QueryError, TensorDBError
from tensordb_data.mongo.retry import within
from tensordb_data.params.parameter_set import RESERVED
from tensordb_data.ui.parts.links import id_of, parsed, parsed_sort, stored_query
from tensordb_data.ui.view import timed_out

if TYPE_CHECKING:
    from starlette.responses import Response

    from tensordb_data.api.frozen.parameter_set import ParameterSet
    from tensordb_data.params.sizes import SetSize
    from tensordb_data.ui.view import View

_SHOWN = 100
_TENSORS = 2_000
_SIZE_SECONDS = 0.5


def params(view: View) -> Response:
    """`./params`: the sets that a filter finds, the newest first."""
    found: list[ParameterSet] = []
    wrong = following = None
    try:
        sort = parsed_sort(view.many("sort")) or [("_id", -1)]
        page = view.db.params.find(parsed(view.one("q")), sort=sort).page(_SHOWN, view.one("after") or None)
        found, following = page.entities, page.next
    except QueryError as error:
        if timed_out(error):
            raise
        wrong = view.window.redact(error)
    return view.page(
        "params.html", 400 if wrong else 200, sets=found, following=following, wrong=wrong, q=view.one("q"),
        sort=view.many("sort"), values=[metrics(each) for each in found], sizes=_sizes(view, found),
    )  # fmt: skip


def one_set(view: View) -> Response:
    """`./set`: one set, what it holds, and from what it was made."""
    found = view.db.params.find({"_id": id_of(view.one("id"), "set")}).first()
    stored = found.get("lineage")
    stored = stored if isinstance(stored, Mapping) else {}
    data = stored.get("data")
    queries = [
        (*stored_query(view, each.get("query")), each)
        for each in (data if isinstance(data, list) else ())
        if isinstance(each, Mapping)
    ]
    tensors, wrong = None, None
    try:
        tensors = found.tensors
    except TensorDBError as error:
        wrong = view.window.redact(error)
    return view.page(
        "set.html", set=found, values=metrics(found), queries=queries, stored=stored, wrong=wrong,
        scored=[(names, *stored_query(view, text)[:2]) for text, names in _scored_on(found).items()],
        tensors=(tensors or [])[:_TENSORS], n=len(tensors or ()), size=_sizes(view, [found]).get(found.id),
        lineage=view.db.params.lineage(found) if isinstance(found.get("lineage", {}), Mapping) else None,
    )  # fmt: skip


def metrics(found: ParameterSet) -> dict[str, Any]:
    """What a set was saved with, and what evaluators have added."""
    return {name: value for name, value in found.items() if name not in RESERVED}


def _scored_on(found: ParameterSet) -> dict[str, list[str]]:
    """The metrics that were found on the samples of a query, by its text."""
    by_query: dict[str, list[str]] = {}
    provenance = found.get("provenance")
    for name, by in provenance.items() if isinstance(provenance, Mapping) else ():
        text = by.get("data") if isinstance(by, Mapping) else None
        if isinstance(text, str):
            by_query.setdefault(text, []).append(name)
    return by_query


def _sizes(view: View, found: list[ParameterSet]) -> dict[Any, SetSize]:
    """What each set has for itself, where that is found in time."""
    if not found:
        return {}
    try:
        with within(_SIZE_SECONDS):
            return view.db.params.sizes({"_id": {"$in": [each.id for each in found]}})
    except Exception as error:
        if not timed_out(error):
            raise
        return {}
