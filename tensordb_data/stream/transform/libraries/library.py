"""What the stream knows of a library of transforms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tensordb_data.errors import QueryError
from tensordb_data.stream.plan.sample_table import FieldLayout

Sample = dict[str, Any]
Function = Callable[..., Any]
Targets = Mapping[str, str]
"""What each field is to a transform, such as "image" or "mask". Fields that are not in it are not changed."""


class Library(ABC):
    """How transforms of one library are called.

    Args:
        function: The transform.
        targets: What fields are to it, as the user says; None for a field that is to be left alone.
    """

    asks_for_fields = True
    """Whether `targets` depends on the fields of the stream."""

    def __init__(self, function: Function, targets: Mapping[str, str | None]) -> None:
        self.function, self.given = function, targets

    def targets(self, layout: FieldLayout) -> Targets:
        """What the fields of a stream are to the transform.

        Raises:
            QueryError: The transform would see none of them, or one that it would not change in step with the others.
        """
        return {}

    @abstractmethod
    def call(self, function: Function, sample: Sample, key: int, targets: Targets) -> Any:
        """What a copy of the transform returns for a sample, with the random numbers of a 64-bit key."""


def comes_from(value: object, *packages: str) -> bool:
    """Whether a value is of a class of one of these packages, or of a class that inherits from one of those."""
    prefixes = tuple(f"{name}." for name in packages)
    return any(f"{base.__module__}.".startswith(prefixes) for base in type(value).__mro__)


def parts(function: Any) -> Iterator[Any]:
    """A transform, and all that it is composed of."""
    yield function
    inner = getattr(function, "transforms", None)
    if inner is None and callable(getattr(function, "children", None)):
        inner = list(function.children())
    for part in inner if isinstance(inner, (list, tuple)) else ():
        yield from parts(part)


def made_of(function: Function, package: str) -> bool:
    """Whether a transform is a container of PyTorch, such as nn.Sequential, with transforms of this package."""
    return comes_from(function, "torch.nn.modules.container") and any(comes_from(p, package) for p in parts(function))


def nothing_seen(layout: FieldLayout, what: str) -> QueryError:
    """The error for a transform that would change no field of the stream."""
    return QueryError(
        f"the transform would see none of the fields {', '.join(layout.fields)}: {what}, or leave out `transform`"
    )
