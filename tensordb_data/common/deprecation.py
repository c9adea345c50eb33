"""Old public names: each works for one more release, and warns with the new name."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from tensordb_data.errors import QueryError

P = ParamSpec("P")
T = TypeVar("T")


def renamed_to(new: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make a method the old name of the method `new`: a call warns, and does what the new one does.

    Args:
        new: The new name. The body of the decorated method calls it.
    """

    def decorate(method: Callable[P, T]) -> Callable[P, T]:
        owner, _, old = method.__qualname__.rpartition(".")

        @functools.wraps(method)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            _warn(f"{owner}.{old}()", f"{owner}.{new}()")
            return method(*args, **kwargs)

        return call

    return decorate


def renamed_options(**names: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a function take options under their old names too: each warns, and is handed on under its new name.

    Args:
        names: The new name by the old one, `has="resources"`.
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
            return function(*args, **kwargs)

        return call

    return decorate


def _warn(old: str, new: str) -> None:
    message = f"{old} is now {new}; the old name works for one more release"
    warnings.warn(message, DeprecationWarning, stacklevel=3)
