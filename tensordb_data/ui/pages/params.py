"""The pages of parameter sets: a table of them, and one set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tensordb_data.params.parameter_set import RESERVED
from tensordb_data.ui.parts.links import id_of, parsed, parsed_sort, stored_query

if TYPE_CHECKING:
    from starlette.responses import Response

    from tensordb_data.params.parameter_set import ParameterSet
    from tensordb_data.ui.view import View

_SHOWN = 100


def params(view: View) -> Response:
    """`./params`: the sets that a filter finds, the newest first."""
    sort = parsed_sort(view.many("sort")) or [("_id", -1)]
    found = view.db.params.find(parsed(view.one("q")), sort=sort, limit=_SHOWN + 1).all()
    return view.page(
        "params.html", sets=found[:_SHOWN], more=len(found) > _SHOWN, q=view.one("q"), sort=view.many("sort"),
        values=[metrics(each) for each in found[:_SHOWN]],
    )  # fmt: skip


def one_set(view: View) -> Response:
    """`./set`: one set, what it holds, and from what it was made."""
    found = view.db.params.find({"_id": id_of(view.one("id"), "set")}).first()
    lineage = found.get("lineage")
    lineage = lineage if isinstance(lineage, Mapping) else {}
    data = lineage.get("data")
    queries = [
        (*stored_query(view, each.get("query")), each)
        for each in (data if isinstance(data, list) else ())
        if isinstance(each, Mapping)
    ]
    return view.page("set.html", set=found, values=metrics(found), queries=queries, lineage=lineage)


def metrics(found: ParameterSet) -> dict[str, Any]:
    """What a set was saved with, and what evaluators have added."""
    return {name: value for name, value in found.items() if name not in RESERVED}
