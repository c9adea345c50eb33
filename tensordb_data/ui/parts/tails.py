"""The newest rows of a run, which the index finds without reading the others."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tensordb_data.logs.arrays import is_logged

if TYPE_CHECKING:
    from tensordb_data.ui.view import View

_TAIL = 40
_NOT_METRICS = ("system", "output")
_NEWEST = [("step", -1), ("_id", -1)]
"""The order of the index, backwards."""


@dataclass(frozen=True)
class Tail:
    """What the newest rows of a run say."""

    step: int | None
    time: Any
    metrics: Mapping[str, float]
    """The newest value of each metric."""
    kinds: tuple[str, ...]
    entities: Sequence[tuple[str, int, Any]]
    """Samples that were logged: under which name, at which step, and their ids."""
    pictures: Sequence[tuple[str, int, Any]] = ()
    """Arrays that were logged and may be pictures: under which name, at which step, and the ids of their rows."""


def tail(view: View, name: str) -> Tail:
    """What the newest rows of a run say, of each kind."""
    kinds = tuple(sorted(map(str, view.db.logs.find({"run": name}).distinct("kind"))))
    step, at_time = None, None
    metrics: dict[str, float] = {}
    entities: list[tuple[str, int, Any]] = []
    pictures: list[tuple[str, int, Any]] = []
    for kind in kinds:
        if kind == "output":
            continue
        for row in view.db.logs.find({"run": name, "kind": kind}, sort=_NEWEST, limit=_TAIL):
            at = row.get("step")
            if isinstance(at, int) and (step is None or at > step) and kind not in _NOT_METRICS:
                step = at
            if isinstance(row.get("time"), dt.datetime) and (at_time is None or row["time"] > at_time):
                at_time = row["time"]
            for field, value in row.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool) and field != "step":
                    metrics.setdefault(field, value)
                elif isinstance(value, dict) and value.keys() == {"collection", "id"} and value["collection"] == "data":
                    entities.append((field, at if isinstance(at, int) else 0, value["id"]))
                elif is_logged(value) and isinstance(value.get("array"), dict):
                    shape = value["array"].get("shape")
                    if isinstance(shape, list) and len(shape) > 1:
                        pictures.append((field, at if isinstance(at, int) else 0, row.id))
    return Tail(step, at_time, metrics, tuple(k for k in kinds if k not in _NOT_METRICS), entities[:12], pictures[:8])
