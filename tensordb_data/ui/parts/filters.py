"""Filters as clicks on facets make them."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import Any

from bson import json_util

from tensordb_data.common.bson_values import JSON
from tensordb_data.ui import shown


def with_value(filter: Mapping[str, Any], field: str, value: Any) -> dict[str, Any]:
    """A filter for one value of a field; without it, if that is what it asks for already."""
    if field in filter and _same(filter[field], value):
        return {name: item for name, item in filter.items() if name != field}
    return {**filter, field: value}


def with_range(filter: Mapping[str, Any], field: str, low: Any, high: Any, *, last: bool) -> dict[str, Any]:
    """A filter for the values of one bar of a histogram. The last bar has its upper end, too."""
    return {**filter, field: {"$gte": low, "$lte" if last else "$lt": high}}


def is_chosen(filter: Mapping[str, Any], field: str, value: Any) -> bool:
    """Whether a filter asks for a value of a field, be it among others."""
    if field not in filter:
        return False
    found = filter[field]
    among = found.get("$in") if isinstance(found, Mapping) else None
    return _same(found, value) or (isinstance(among, list) and any(_same(each, value) for each in among))


def as_json(value: Any) -> Any:
    """A value as plain data for JSON, dates and ids as extended JSON."""
    return json.loads(shown.filter_text({"": value}))[""]


def from_json(value: Any) -> Any:
    """The value that `as_json` was given."""
    found = json_util.loads(json.dumps(value), json_options=JSON)
    return found.replace(tzinfo=None) if isinstance(found, dt.datetime) else found


def bars(bins: Sequence[int], height: int) -> list[tuple[int, int]]:
    """Where the bars of a histogram begin, from the top, and how high they are. One that is not empty is seen."""
    most = max(bins, default=0) or 1
    heights = [max(1, round(n / most * height)) if n else 0 for n in bins]
    return [(height - each, each) for each in heights]


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other
