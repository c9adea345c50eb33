"""Find the datasets to which a filter is restricted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def selected_datasets(filter: Mapping[str, Any]) -> list[str] | None:
    """The datasets that a filter is restricted to, or None when it may match any."""
    named = filter.get("dataset")
    if isinstance(named, str):
        return [named]
    if isinstance(named, dict):
        if isinstance(named.get("$eq"), str):
            return [named["$eq"]]
        listed = named.get("$in")
        if isinstance(listed, list) and all(isinstance(name, str) for name in listed):
            return list(listed)
    parts = filter.get("$and")
    for part in parts if isinstance(parts, list) else ():
        inner = selected_datasets(part) if isinstance(part, dict) else None
        if inner is not None:
            return inner
    return None
