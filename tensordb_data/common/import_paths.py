"""Allow: from the name of a callable, read from a warehouse, to the callable, inside a list that the caller gives.

Whoever can write to a database must not thereby run code where it is read. A reference `module:callable` is only
imported when its module is on the list, and what it leads to is only used when it was defined there: a module that is
allowed may have imported `os`, and `mypkg.nets:os.system` is not a part of it.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from tensordb_data.errors import ArchitectureError, NotAllowedError


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

    def resolve(self, reference: str) -> Callable[..., Any]:
        """The function or class that `module:callable` names. Nothing that is not allowed is imported.

        Raises:
            NotAllowedError: The list does not cover it, or it leads to something that was defined elsewhere.
            ArchitectureError: It is no reference, or there is no such thing.
        """
        module, name = split(reference)
        named = reference in self._entries
        if not named and not self.module(module):
            raise self._refusal(repr(reference), module, f"{module.split('.')[0]}.")
        try:
            found: Any = importlib.import_module(module)
        except ImportError as error:
            raise ArchitectureError(f"{reference!r} cannot be imported here: {error}") from error
        for part in name.split("."):
            try:
                found = getattr(found, part)
            except AttributeError:
                raise ArchitectureError(f"{reference!r}: there is no {name!r} in the module {module}") from None
            if inspect.ismodule(found):
                raise NotAllowedError(
                    f"{reference!r} leads through another module, {found.__name__}; name the callable by its own:"
                    f" '{found.__name__}:…'"
                )
        if not (inspect.isroutine(found) or inspect.isclass(found)):
            raise ArchitectureError(f"{reference!r} is a {type(found).__name__}; a function or a class is needed")
        home = getattr(found, "__module__", None) or "builtins"
        if not named and not self.module(home):
            raise self._refusal(f"{reference!r} was defined in {home}, and", home, reference)
        return found

    def _refusal(self, what: str, module: str, entry: str) -> NotAllowedError:
        given = ", ".join(map(repr, self._entries)) or "nothing"
        verb = " " if what.endswith("and") else " is refused: "
        return NotAllowedError(
            f"{what}{verb}{module} is not on the list of what may run ({given} is);"
            f' if you trust it, pass allow=["{entry}"]'
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
