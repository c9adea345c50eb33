"""Reading the index: pages of sample documents in the order of the query, re-opened by position when a cursor dies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def selected_datasets(filter_: Mapping[str, Any]) -> list[str] | None:
    """The datasets that a filter names, or `None` when it may match any."""
    named = filter_.get("dataset")
    if isinstance(named, str):
        return [named]
    if isinstance(named, Mapping) and isinstance(named.get("$in"), list):
        names = named["$in"]
        return names if all(isinstance(name, str) for name in names) else None
    for part in filter_.get("$and", []):
        if (inner := selected_datasets(part)) is not None:
            return inner
    return None
