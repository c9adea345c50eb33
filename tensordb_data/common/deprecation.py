"""Old public names: each works for one more release, and warns with the new name."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from tensordb_data.common.options import OptionGroup
from tensordb_data.errors import QueryError, TensorDBError

P = ParamSpec("P")
T = TypeVar("T")


def renamed_to(new: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make a method the old name of the method `new`: a call warns, and does what the new one does.

    Args:
        new: The new name. The body of the decorated method calls it.
    """

    def decorate(method: Callable[P, T]) -> Callable[P, T]:
        old = method.__name__

        @functools.wraps(method)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            owner = type(args[0]).__name__  # the class that the user has, wherever the method is defined
            _warn(f"{owner}.{old}()", f"{owner}.{new}()")
            return method(*args, **kwargs)

        return call

    return decorate


def renamed_options(**names: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a function take options under their old names too: each warns, and is handed on under its new name.

    Args:
        names: The new name by the old one, `has="resources"`.
    """
    return moved_options(**names)


@dataclass(frozen=True)
class Grouped:
    """Options that a function took one by one, and takes as a group now."""

    option: str
    """The option that takes the group: `"options"`."""
    group: type[OptionGroup]
    """The group: `SaveOptions`."""
    old: Mapping[str, str]
    """The field of the group by the old name of the option: `{"every_seconds": "seconds"}`."""
    shorthands: Mapping[str, str] = field(default_factory=dict)
    """The field of the group by an option that stays, and may be given beside old ones: `{"every": "steps"}`."""
    error: type[TensorDBError] = QueryError
    """What is raised if the group and one of its old options are given."""


def moved_options(*groups: Grouped, **names: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a function take options where they were before, in no group or under another name: each warns.

    Args:
        groups: The groups, with the old names of their options.
        names: The new name of an option by the old one, `has="resources"`.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        owner = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            for old in [name for name in names if name in kwargs]:
                new = names[old]
                if new in kwargs:
                    raise QueryError(f"{owner} was given both {new}= and {old}=, its old name: give {new}= alone")
                _warn(f"{owner}({old}=)", f"{owner}({new}=)")
                kwargs[new] = kwargs.pop(old)
            for one in groups:
                found = [name for name in one.old if name in kwargs]
                for name in found:
                    inside = f"{one.group.__name__}({one.old[name]}=)"
                    if isinstance(kwargs.get(one.option), one.group):
                        raise one.error(f"{owner} was given both {one.option}= and {name}=: give {one.option}={inside}")
                    _warn(f"{owner}({name}=)", f"{owner}({one.option}={inside})")
                if found:
                    _regroup(one, kwargs)
            return function(*args, **kwargs)

        return call

    return decorate


def _regroup(one: Grouped, options: dict[str, Any]) -> None:
    """Put the old options, and what stays a shorthand beside them, into their group."""
    given = {name: options.pop(name) for name in (*one.old, *one.shorthands) if name in options}
    fields = {**one.old, **one.shorthands}
    values = {fields[name]: value for name, value in given.items() if value is not None}
    if values:
        options[one.option] = one.group.spelled(values, {field: f"{name}=" for name, field in fields.items()})


def _warn(old: str, new: str) -> None:
    message = f"{old} is now {new}; the old name works for one more release"
    warnings.warn(message, DeprecationWarning, stacklevel=3)
