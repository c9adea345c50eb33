"""The rows of a run from whatever a trainer reports. Nothing that is reported ends the training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from numbers import Number
from typing import TYPE_CHECKING, Any

from tensordb_data.checkpoint.metrics import StorableMetrics
from tensordb_data.errors import SchemaError
from tensordb_data.logs.writer import RunLog
from tensordb_data.params.parameter_set import set_fields
from tensordb_data.runs.documents import make_run
from tensordb_data.warehouse.metrics import scalar

if TYPE_CHECKING:
    from tensordb_data.api.database import TensorDB

_LEVELS = 20  # of nested hyperparameters


class RunRows:
    """Writes what a trainer reports into the log of a run. The log is opened with the first row.

    Args:
        db: The warehouse.
        run: Name of the run.
        tags: Tags of each row.

    Raises:
        SchemaError: The name or a tag is malformed.
    """

    def __init__(self, db: TensorDB, run: str, tags: Sequence[str] = ()) -> None:
        if run is None:
            raise SchemaError("a run is named by a non-empty string; found None")
        set_fields(run, 0, tags, {})
        self.db, self.run, self.tags = db, run, list(tags)
        self._storable = StorableMetrics()
        self._told: set[str] = set()
        self._log: RunLog | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the log, which another process opens for itself."""
        return {**self.__dict__, "_log": None}

    @property
    def log(self) -> RunLog:
        """The log, open."""
        if self._log is None:
            self._log = RunLog(self.db.warehouse, self.run, self.tags)
        return self._log

    def write(self, step: Any, kind: str, metrics: Mapping[Any, Any]) -> None:
        """Adds a row of what can be stored of the metrics; says once what cannot.

        A step that is no integer is rounded down; where there is none, or no number, it is that of the row before.
        """
        try:
            if row := self._stored(metrics):
                self.log.write(self._step(step), kind, **row)
        except Exception as error:
            self._warn(f"a row of {self.run!r} is left out: {error}", f"row {type(error).__name__}")

    def write_config(self, values: Any) -> None:
        """Notes hyperparameters as the configuration of the run. Names of nested ones are joined by a slash."""
        try:
            if config := self._stored(_flat(values, (), {})):
                make_run(self.db.warehouse, self.run, config)
        except Exception as error:
            self._warn(f"the hyperparameters of {self.run!r} are left out: {error}")

    def close(self) -> None:
        """Writes all rows, and closes the log until the next row."""
        log, self._log = self._log, None
        try:
            if log is not None:
                log.close()
        except Exception as error:
            self._warn(str(error))

    def _stored(self, values: Mapping[Any, Any]) -> dict[str, Any]:
        """What the index can hold of some values; says once what it cannot."""
        found = self._storable({str(name): value for name, value in values.items()})
        return {name: value for name, value in found.items() if self._fits(name, value)}

    def _step(self, step: Any) -> int:
        try:
            found: int = math.floor(step)
        except (TypeError, ValueError, OverflowError):
            return self.log.last_step
        return found

    def _fits(self, name: str, value: Any) -> bool:
        """Whether the log takes a value. One on a device is fetched later, by another thread."""
        if getattr(value, "is_cuda", False) is True:
            return True
        try:
            scalar(name, value)
        except SchemaError as error:
            self._warn(f"the metric {name!r} is left out: {error}", name)
            return False
        return True

    def _warn(self, text: str, key: str | None = None) -> None:
        if (key or text) not in self._told:
            self._told.add(key or text)
            warnings.warn(text, stacklevel=4)


def _flat(value: Any, path: tuple[str, ...], found: dict[str, Any]) -> dict[str, Any]:
    """Hyperparameters by their names: mappings and namespaces flat, and what is no number or text as text."""
    if not isinstance(value, (Mapping, str, bytes, Number)) and not path and hasattr(value, "__dict__"):
        value = vars(value)  # an argparse.Namespace
    if isinstance(value, Mapping) and len(path) < _LEVELS:
        for key, item in value.items():
            _flat(item, (*path, str(key)), found)
    elif path and value is not None:
        found["/".join(path)] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    size = math.prod(getattr(value, "shape", ()) or (1,))
    if isinstance(value, (bool, int, float, str)) or (hasattr(value, "item") and size == 1):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(item, (bool, int, float, str)) for item in value):
        return list(value)
    return str(value)
