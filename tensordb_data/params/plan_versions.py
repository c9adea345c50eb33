"""Which data the plans in a parameter set are of. A gc keeps blobs that were replaced since."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_STREAM, _PLANS = "stream", "plans"


def plan_versions(structure: Any) -> list[dict[str, Any]] | None:
    """The datasets of the plans in a set, and the oldest mutation counter of each: `{d, m}`.

    Args:
        structure: The structure of a snapshot, whose root is a dict of parts.

    Returns:
        None if the set has no plans, or does not say of which data they are.
    """
    parts = dict(_items(structure))
    if _PLANS not in parts:
        return None
    oldest: dict[str, int] = {}
    for dataset, mutation in _found(parts.get(_STREAM)):
        oldest[dataset] = min(oldest.get(dataset, mutation), mutation)
    return [{"d": dataset, "m": mutation} for dataset, mutation in sorted(oldest.items())] or None


def _found(value: Any) -> Iterator[tuple[str, int]]:
    if isinstance(value, list):
        for item in value:
            yield from _found(item)
    elif isinstance(value, Mapping):
        for name, item in _items(value):
            if name == "versions":
                for dataset, pair in _items(item):
                    if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], int):
                        yield dataset, pair[1]
            else:
                yield from _found(item)
        for name, item in value.items():
            if name != "dict":
                yield from _found(item)


def _items(value: Any) -> list[tuple[str, Any]]:
    """The items of a dict of the structure."""
    pairs = value.get("dict") if isinstance(value, Mapping) else None
    return [(str(name), item) for name, item in pairs] if isinstance(pairs, list) else []
