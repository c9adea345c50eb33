"""Find the source text of a module without importing it."""

from __future__ import annotations

import importlib.machinery
import sys
from pathlib import Path

_MOST = 1 << 20  # bytes; what is longer was not written by hand


def module_source(name: str) -> str | None:
    """The source of a module, None where there is none to find (compiled, generated, not installed here)."""
    path = _file(name)
    try:
        if path is None or path.suffix != ".py" or path.stat().st_size > _MOST:
            return None
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _file(name: str) -> Path | None:
    loaded = sys.modules.get(name)
    if loaded is not None:
        file = getattr(loaded, "__file__", None)
        return None if file is None else Path(file)
    places: list[str] | None = None
    spec = None
    parts = name.split(".")
    for depth in range(len(parts)):
        # One level at a time: find_spec of the whole name would import the packages above it.
        try:
            spec = importlib.machinery.PathFinder.find_spec(".".join(parts[: depth + 1]), places)
        except (ImportError, ValueError):
            return None
        if spec is None:
            return None
        places = None if spec.submodule_search_locations is None else list(spec.submodule_search_locations)
        if places is None and depth < len(parts) - 1:
            return None
    return None if spec is None or spec.origin is None else Path(spec.origin)
