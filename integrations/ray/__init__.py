"""Ray: datasets of Ray Data over Selections, and sinks that write samples and annotations."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import MissingExtraError

if TYPE_CHECKING:
    from tensordb_data.ray.annotating import annotate
    from tensordb_data.ray.reading import read
    from tensordb_data.ray.sink import SinkReport
    from tensordb_data.ray.writing import write

__all__ = ["SinkReport", "annotate", "read", "write"]
_MODULES = {"SinkReport": "sink", "annotate": "annotating", "read": "reading", "write": "writing"}


def __getattr__(name: str) -> Any:
    # Each name is imported when it is used: Ray Data takes seconds.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        found = getattr(import_module(f"tensordb_data.ray.{_MODULES[name]}"), name)
    except ImportError as error:
        raise MissingExtraError(f"tensordb_data.ray.{name} needs Ray: pip install 'tensordb-data[ray]'") from error
    globals()[name] = found
    return found
