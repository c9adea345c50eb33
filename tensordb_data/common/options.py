"""Groups of options: frozen values that are checked once, and an error that knows the nearest name."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
G = TypeVar("G", bound="OptionGroup")

Written = Callable[[str], str]
"""How the user wrote an option: `Every(steps=)`, or `every=` where a function takes it by itself."""


class OptionGroup:
    """What the frozen dataclasses of options have in common: each value is checked when it is made, and never again."""

    def __post_init__(self) -> None:
        self._check(lambda field: f"{type(self).__name__}({field}=)")

    def _check(self, written: Written) -> None:
        """Raises an error if a value is wrong. The error names the option by `written(field)`."""

    @classmethod
    def spelled(cls: type[G], values: Mapping[str, Any], names: Mapping[str, str]) -> G:
        """A group of options that the user wrote one by one.

        Args:
            values: The values by field.
            names: The option that the user wrote, by field: `{"steps": "every="}`. An error uses these names.
        """
        group = object.__new__(cls)
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            missing = field.default is dataclasses.MISSING
            default = field.default_factory() if callable(field.default_factory) and missing else field.default
            object.__setattr__(group, field.name, values.get(field.name, default))
        group._check(lambda field: names.get(field, f"{field}="))
        return group


def suggesting(*more: type) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a function refuse an option that it does not have by a TypeError that names the nearest one.

    Args:
        more: The TypedDicts of the options that the function takes as `**options`.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        owner = function.__qualname__.removesuffix(".__init__")
        named = inspect.signature(function).parameters.values()
        known = {one.name for one in named if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)} - {
            "self",
            "cls",
        }
        known |= {name for kind in more for name in kind.__annotations__}

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            for name in kwargs:
                if name not in known:
                    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                    hint = f"did you mean {near[0]}=?" if near else f"it has {', '.join(sorted(known))}"
                    raise TypeError(f"{owner} has no option {name}=: {hint}")
            return function(*args, **kwargs)

        return call

    return decorate


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error about a name that does not exist: `; did you mean "digits"?`, or the names that there are."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(map(repr, names[:20])) or 'none'}"


def is_number(value: object) -> bool:
    """Whether a value is a number, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
