"""Functions of the user's own, and transforms that take a whole sample, such as the dictionary transforms of MONAI."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from tensordb_data.errors import QueryError
from tensordb_data.stream.plan.sample_table import FieldLayout
from tensordb_data.stream.transform.libraries.library import (
    Function,
    Library,
    Sample,
    Targets,
    comes_from,
    nothing_seen,
    parts,
)


class Plain(Library):
    """A callable that takes the sample, or the sample and a generator."""

    asks_for_fields = False

    def __init__(self, function: Function, targets: Mapping[str, str | None]) -> None:
        super().__init__(function, targets)
        self._takes_rng = _takes_rng(function)

    def call(self, function: Function, sample: Sample, key: int, targets: Targets) -> Any:
        if self._takes_rng:
            return function(sample, np.random.Generator(np.random.Philox(key=key)))
        return function(sample)


class Monai(Library):
    """A dictionary transform of MONAI. Its random state belongs to the transform, and is set for each sample."""

    def targets(self, layout: FieldLayout) -> Targets:
        for part in parts(self.function):
            name = type(part).__name__
            own = type(part).__module__.split(".")[0] == "monai"
            if own and not hasattr(part, "keys") and not hasattr(part, "transforms"):
                raise QueryError(
                    f"a sample is a dict of fields, and {name} of MONAI takes one array: use its dictionary form,"
                    f' {name}d(keys=["image"])'
                )
        keys = {
            key
            for part in parts(self.function)
            if isinstance(found := getattr(part, "keys", ()), tuple)
            for key in found
        }
        if keys and not keys & set(layout.fields):
            raise nothing_seen(layout, f"its keys are {', '.join(sorted(map(str, keys)))}; name those of the fields")
        return {}

    def call(self, function: Any, sample: Sample, key: int, targets: Targets) -> Any:
        if hasattr(function, "set_random_state"):
            function.set_random_state(seed=key & 0xFFFFFFFF)
        return function(sample)


def is_monai(function: object) -> bool:
    """Whether a transform is one of MONAI."""
    return comes_from(function, "monai")


def _takes_rng(function: Function) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    required = [
        parameter
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and (parameter.default is parameter.empty or parameter.name == "rng")
    ]
    return len(required) >= 2
