"""TensorFlow and Keras: datasets over queries, and a callback that saves every N steps."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import MissingExtraError

if TYPE_CHECKING:
    from tensordb_data.tf.callback import StepCheckpoint
    from tensordb_data.tf.dataset import query_dataset

__all__ = ["StepCheckpoint", "query_dataset"]
_MODULES = {"StepCheckpoint": "callback", "query_dataset": "dataset"}


def __getattr__(name: str) -> Any:
    # Each name is imported when it is used: the callback needs Keras only, which can run on torch, without TensorFlow.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        found = getattr(import_module(f"tensordb_data.tf.{_MODULES[name]}"), name)
    except ImportError as error:
        raise MissingExtraError(f"tensordb_data.tf.{name} needs TensorFlow: pip install 'tensordb-data[tf]'") from error
    globals()[name] = found
    return found
