"""Import paths, `module:name`: from a function to its path, and back.

Whoever can write to a database must not thereby run code where it is read. So a path from a warehouse is resolved with
a list of what is allowed. Nothing is imported whose module is not on the list. A callable is only used if it was
defined in a module on the list: a module that is allowed may have imported `os`, and `mypkg.nets:os.system` is not a
part of it.

A path that the user gives in the program is trusted, and resolved without a list.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from tensordb_data.errors import ArchitectureError, NotAllowedError, QueryError


class Allow:
    """What may be imported and run.

    Args:
        entries: `"mypkg."` allows the package `mypkg` and all modules in it, `"mypkg.nets"` this module alone, and
            `"mypkg.nets:cnn"` this callable alone, wherever it was defined.
        written: How the user wrote this option, for errors.

    Raises:
        NotAllowedError: It is not a list of such names.
    """

    def __init__(self, entries: Sequence[str], written: str = "allow=") -> None:
        if isinstance(entries, str) or not all(isinstance(entry, str) for entry in entries):
            raise NotAllowedError(f'{written} is a list such as ["mypkg."]; found {entries!r}')
        for entry in entries:
            module, colon, name = entry.partition(":")
            if not _dotted(module if colon else module.removesuffix(".")) or (colon and not _dotted(name)):
                raise NotAllowedError(
                    f'{written} names packages ("mypkg."), modules ("mypkg.nets") or callables ("mypkg.nets:cnn");'
                    f" found {entry!r}"
                )
        self._entries = tuple(entries)

    def module(self, name: str) -> bool:
        """Whether everything that is defined in a module may run."""
        return any(name == entry or (entry.endswith(".") and f"{name}.".startswith(entry)) for entry in self._entries)

    def check_module(self, name: str, what: str) -> None:
        """Refuses a module that is not on the list.

        Raises:
            NotAllowedError: It names what wants it, and the list that would allow it.
        """
        if not self.module(name):
            raise self._refusal(what, name, f"{name.split('.')[0]}.")

    def check_path(self, path: str) -> None:
        """Refuse a path that the list does not cover, before anything is imported.

        Raises:
            NotAllowedError: The list does not cover it.
            ArchitectureError: It is no import path.
        """
        module, _ = split(path)
        if path not in self._entries and not self.module(module):
            raise self._refusal(repr(path), module, f"{module.split('.')[0]}.")

    def check_found(self, path: str, found: object) -> None:
        """Refuse what a path leads to, if it is no callable or was defined in a module that is not on the list.

        Raises:
            NotAllowedError: It is a module, or was defined elsewhere.
            ArchitectureError: It is neither a function nor a class.
        """
        if inspect.ismodule(found):
            raise NotAllowedError(
                f"{path!r} leads through another module, {found.__name__}; name the callable by its own:"
                f" '{found.__name__}:…'"
            )
        if not (inspect.isroutine(found) or inspect.isclass(found)):
            raise ArchitectureError(f"{path!r} is a {type(found).__name__}; a function or a class is needed")
        home = getattr(found, "__module__", None) or "builtins"
        if path not in self._entries and not self.module(home):
            raise self._refusal(f"{path!r} was defined in {home}, and", home, path)

    def _refusal(self, what: str, module: str, entry: str) -> NotAllowedError:
        given = ", ".join(map(repr, self._entries)) or "nothing"
        verb = " " if what.endswith("and") else " is refused: "
        return NotAllowedError(
            f"{what}{verb}{module} is not on the list of what may run ({given} is);"
            f' if you trust it, pass allow=["{entry}"]'
        )


def resolve(path: str, allow: Allow | None = None) -> Callable[..., Any]:
    """Import what `module:name` names: a function or a class; without a list, any object that can be called.

    Args:
        path: The import path.
        allow: What may be imported; None if the path is trusted.

    Raises:
        NotAllowedError: The list does not cover it.
        ArchitectureError: With a list: there is no such callable.
        QueryError: Without a list: there is no such callable.
    """
    kind = QueryError if allow is None else ArchitectureError
    if allow is not None:
        allow.check_path(path)
    module, colon, name = path.partition(":")
    if not (colon and _dotted(module) and _dotted(name)):
        raise kind(f'a function by name is written "package.module:name". Found: {path!r}')
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise kind(f"{path!r} cannot be imported here: {error}") from error
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise kind(f"{path!r}: there is no {name!r} in the module {module}") from None
        if allow is not None and inspect.ismodule(found):
            break
    if allow is not None:
        allow.check_found(path, found)
    elif not callable(found):
        raise kind(f"the function {path!r} must be callable. Found: {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def import_path(function: Callable[..., Any] | str) -> str:
    """The import path of a callable.

    Raises:
        QueryError: It has none: it was made inside a function, or is an object rather than a function.
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


def split(reference: str) -> tuple[str, str]:
    """Module and name in a reference `module:callable`.

    Raises:
        ArchitectureError: It is none.
    """
    module, _, name = reference.partition(":") if isinstance(reference, str) else ("", "", "")
    if not (_dotted(module) and _dotted(name)) or any(part.startswith("__") for part in name.split(".")):
        raise ArchitectureError(f'expected a reference such as "mypkg.nets:cnn"; found {reference!r}')
    return module, name


def _dotted(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))
