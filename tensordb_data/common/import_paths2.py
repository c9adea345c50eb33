"""Named: functions by their import paths, `module:name`, so that another process can find them.

Whoever gives such a path trusts it: names that come from a warehouse go through `allow` instead.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from tensordb_data.errors import QueryError


def resolve(path: str) -> Callable[..., Any]:
    """The callable at an import path.

    Raises:
        QueryError: nothing is found there, or nothing that can be called.
    """
    module, colon, name = path.partition(":")
    if not (colon and all(part.isidentifier() for part in [*module.split("."), *name.split(".")])):
        raise QueryError(f'a function by name is written "package.module:name". Found: {path!r}')
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise QueryError(f"the function {path!r} cannot be imported: {error}") from error
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise QueryError(f"the function {path!r}: there is no {name!r} in the module {module}") from None
    if not callable(found):
        raise QueryError(f"the function {path!r} must be callable. Found: {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def path_of(function: Callable[..., Any] | str) -> str:
    """The import path of a callable.

    Raises:
        QueryError: there is none: it was made inside a function, or is an object rather than a function.
    """
    if isinstance(function, str):
        return function
    path = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', '')}"
    try:
        if resolve(path) is function:
            return path
    except QueryError:
        pass
    what = getattr(function, "__qualname__", None) or f"an object of {type(function).__qualname__}"
    raise QueryError(
        f"worker processes import the transform by its name, and {what} has none: define it with `def` at the top level"
        ' of a module, or give the path of an object that a module holds, such as transform="augment:pipeline"; a'
        " lambda, a function within a function or a bound method runs in threads only (workers=0)"
    )
