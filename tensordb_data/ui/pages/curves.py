"""The curves of the page of runs, as JSON: first from a few steps, then from all rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import NotFoundError, QueryError
from tensordb_data.mongo.retry import within
from tensordb_data.table.activity.curve import sampled_curve
from tensordb_data.ui import view as view_
from tensordb_data.ui.pages.runs import MOST_CHOSEN
from tensordb_data.ui.parts.tails import tail

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.responses import Response

    from tensordb_data.ui.view import View

_POINTS = 500
_EXACT_SECONDS = 15.0  # for all rows of all runs; until then the page shows those that are sampled


def curves(view: View) -> Response:
    """`./curves`: mean, lowest and highest value of a metric by step, for each run and kind.

    With `sampled=1` only rows at some 500 steps are read, which the index finds.

    Raises:
        QueryError: No run or no metric is named.
        NotFoundError: No row of the runs has a number of this name; names those that are there.
    """
    names, metric, kind = view.many("run", MOST_CHOSEN), view.one("metric"), view.one("kind")
    if not names or not metric:
        raise QueryError("curves are those of a metric= of at least one run=")
    if view.one("sampled"):
        with within(view_.SECONDS):
            lines = [line for name in names for line in _sampled(view, name, metric, kind)]
    else:
        kinds = {"kind": kind} if kind else {"kind": {"$nin": ["output", "system"]}}
        with within(_EXACT_SECONDS):
            found = view.db.logs.find({"run": {"$in": names}, **kinds}).series(metric, points=_POINTS)
        lines = [
            {
                "run": each.run, "kind": each.kind, "step": _numbers(each.step), "mean": _numbers(each.mean),
                "low": _numbers(each.low), "high": _numbers(each.high), "rows": int(each.count.sum()),
                "nonfinite": int(each.nonfinite.sum()),
            }
            for each in found
        ]  # fmt: skip
    if not lines:
        known = sorted({known for name in names for known in tail(view, name).metrics})
        there = f"there are {', '.join(known)}" if known else "they have no numbers in their newest rows"
        raise NotFoundError(f"no row of these runs has a number {metric!r}: {there}")
    order = {name: place for place, name in enumerate(names)}
    lines.sort(key=lambda line: (order[line["run"]], line["kind"]))
    return view.data({"metric": metric, "lines": lines, "sampled": bool(view.one("sampled"))})


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
