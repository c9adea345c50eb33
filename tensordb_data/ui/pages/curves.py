"""The curves of the page of runs, as JSON: first from a few steps, then from all rows, and then what is new."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import NotFoundError, QueryError
from tensordb_data.mongo.retry import within
from tensordb_data.table.activity.curve import sampled_curve
from tensordb_data.ui.pages.runs import MOST_CHOSEN
from tensordb_data.ui.parts.links import id_of
from tensordb_data.ui.parts.tails import tail

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.responses import Response

    from tensordb_data.ui.view import View

_POINTS = 500
_FRESH = 2_000
_EXACT_SECONDS = 15.0  # for all rows of all runs; until then the page shows those that are sampled


def curves(view: View) -> Response:
    """`./curves`: mean, lowest and highest value of a metric by step, for each run and kind, from all rows.

    `newest` is the id after which `./fresh` goes on.

    Raises:
        QueryError: No run or no metric is named.
        NotFoundError: No row of the runs has a number of this name; names those that are there.
    """
    names, metric, kind = _asked(view)
    with within(_EXACT_SECONDS):
        # First of all: what is written meanwhile is new, or is in both.
        newest = _newest(view)
        found = view.db.logs.find({"run": {"$in": names}, **_kinds(kind)}).series(metric, points=_POINTS)
    lines = [
        {
            "run": each.run, "kind": each.kind, "step": _numbers(each.step), "mean": _numbers(each.mean),
            "low": _numbers(each.low), "high": _numbers(each.high), "rows": int(each.count.sum()),
            "nonfinite": int(each.nonfinite.sum()),
        }
        for each in found
    ]  # fmt: skip
    return _answer(view, names, metric, lines, newest)


def sampled(view: View) -> Response:
    """`./sampled`: the same from rows at some 500 steps alone, which the index finds.

    Raises:
        QueryError: As for `curves`.
        NotFoundError: As for `curves`.
    """
    names, metric, kind = _asked(view)
    lines = [line for name in names for line in _sampled(view, name, metric, kind)]
    return _answer(view, names, metric, lines, None)


def fresh(view: View) -> Response:
    """`./fresh`: the steps and values of rows that were written after a row, by their ids; `newest` for the next time.

    Of more than 2,000 rows, it only says so.

    Raises:
        QueryError: As for `curves`, or `after=` is no id.
    """
    names, metric, kind = _asked(view)
    after = id_of(view.one("after"), "row")
    # By the ids alone: the index of runs would be read as a whole, to find what is new.
    bound = view.db.logs.find({"run": {"$in": names}, **_kinds(kind), "_id": {"$gt": after}}).bound
    fields = {"run": 1, "kind": 1, "step": 1, metric: 1}
    rows = list(bound.collection.find(bound.filter(), fields).sort("_id", 1).limit(_FRESH + 1).hint("_id_"))
    if len(rows) > _FRESH:
        return view.data({"more": True})
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        value = row.get(metric)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and isinstance(row.get("step"), int):
            key = str(row["run"]), str(row["kind"])
            line = lines.setdefault(key, {"run": key[0], "kind": key[1], "step": [], "value": []})
            line["step"].append(row["step"])
            line["value"].append(_finite(value))
    newest = str(rows[-1]["_id"]) if rows else view.one("after")
    return view.data({"more": False, "lines": list(lines.values()), "newest": newest})


def _asked(view: View) -> tuple[list[str], str, str]:
    names, metric = view.many("run", MOST_CHOSEN), view.one("metric")
    if not names or not metric:
        raise QueryError("curves are those of a metric= of at least one run=")
    return names, metric, view.one("kind")


def _kinds(kind: str) -> dict[str, Any]:
    return {"kind": kind} if kind else {"kind": {"$nin": ["output", "system"]}}


def _newest(view: View) -> str | None:
    """The id of the newest row of all: those of other runs count too, since the ids ascend for all of them."""
    found = view.db.logs.find(sort=[("_id", -1)], limit=1, fields=["step"]).head(1)
    return str(found[0].id) if found else None


def _answer(view: View, names: list[str], metric: str, lines: list[dict[str, Any]], newest: str | None) -> Response:
    if not lines:
        known = sorted({known for name in names for known in tail(view, name).metrics})
        there = f"there are {', '.join(known)}" if known else "they have no numbers in their newest rows"
        raise NotFoundError(f"no row of these runs has a number {metric!r}: {there}")
    order = {name: place for place, name in enumerate(names)}
    lines.sort(key=lambda line: (order[line["run"]], line["kind"]))
    return view.data({"metric": metric, "lines": lines, "newest": newest})


def _sampled(view: View, name: str, metric: str, kind: str) -> Iterable[dict[str, Any]]:
    for each in [kind] if kind else tail(view, name).kinds:
        pairs = sampled_curve(view.db.warehouse, name, each, metric, _POINTS)
        if pairs:
            values = [_finite(value) for _, value in pairs]
            yield {
                "run": name, "kind": each, "step": [step for step, _ in pairs], "mean": values, "low": values,
                "high": values, "rows": len(pairs), "nonfinite": sum(value is None for value in values),
            }  # fmt: skip


def _numbers(column: Any) -> list[float | None]:
    return [_finite(value) for value in column.tolist()]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
