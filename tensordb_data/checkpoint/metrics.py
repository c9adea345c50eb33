"""What a training loop reports, as log rows and parameter sets can hold it. A metric never ends a training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from tensordb_data.errors import SchemaError
from tensordb_data.logs.writer import RESERVED as OF_ROWS
from tensordb_data.params.parameter_set import RESERVED as OF_SETS
from tensordb_data.warehouse.metrics import check_names, scalar

_TAKEN = OF_ROWS | OF_SETS
_PLAIN = (float, int, bool, str, type(None))


class StorableMetrics:
    """Gives metrics names that fields can have, and leaves out what cannot be stored. It says so once for each name.

    A dot in a name becomes `_`. A name that rows or sets use themselves gets `_` at its end, and so does one that
    another metric has already.
    """

    def __init__(self) -> None:
        self._names: dict[str, str | None] = {}  # under which each is stored; None if it cannot be
        self._told: set[str] = set()

    def __call__(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """The metrics that can be stored, by the names under which they are."""
        if new := [given for given in metrics if given not in self._names]:
            for given in sorted(new, key=_fits, reverse=True):  # who has a good name keeps it
                self.name(given)
        found: dict[str, Any] = {}
        for given, value in metrics.items():
            name = self._names[given]
            why = "no field can have this name" if name is None else _fault(name, value)
            if name is not None and why is None:
                found[name] = value
            elif given not in self._told:
                self._told.add(given)
                warnings.warn(f"the metric {given!r} is left out: {why}", stacklevel=4)
        return found

    def name(self, given: str) -> str | None:
        """The name under which a metric is stored; None if it cannot be."""
        if given not in self._names:
            plain = name = given.replace(".", "_")
            while name in _TAKEN or name in self._names.values():
                name += "_"
            self._names[given] = name if _fits(name) else None
            if name != plain:
                warnings.warn(f"the metric {given!r} is stored as {name!r}: its own name is taken", stacklevel=5)
        return self._names[given]


def _fits(name: str) -> bool:
    try:
        check_names([name], _TAKEN)
    except SchemaError:
        return False
    return True


def _fault(name: str, value: Any) -> str | None:
    """Why a value cannot be stored. A scalar on a device is not fetched for that."""
    if isinstance(value, _PLAIN):
        return None
    if hasattr(value, "shape"):
        size = math.prod(int(length) for length in value.shape)
        return None if size == 1 else f"an array of shape {tuple(value.shape)}; log a number, its mean say"
    try:
        scalar(name, value)
    except SchemaError as error:
        return str(error)
    return None
