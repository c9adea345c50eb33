"""How saved parameters and a model differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tensordb_data.common.html import Report
from tensordb_data.errors import StateError

_SHOWN = 5  # names in a message, per kind of difference


@dataclass(frozen=True)
class Difference(Report):
    """How a model and a checkpoint differ. It is false if they do not."""

    missing: tuple[str, ...] = ()
    """Names in the model that the checkpoint does not have."""
    unexpected: tuple[str, ...] = ()
    """Names in the checkpoint that the model does not have."""
    shapes: tuple[str, ...] = ()
    """Names in both whose shapes differ, with what was expected and what was found."""
    matched: tuple[str, ...] = ()
    """Names in the model for which the checkpoint has values that fit. These were loaded, if anything was."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes)

    def __str__(self) -> str:
        named = (("missing", self.missing), ("unexpected", self.unexpected), ("of another shape", self.shapes))
        told = [f"{len(self.matched)} fit"] if self.matched else []
        told += [
            f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''}"
            for what, names in named
            if names
        ]
        return ". ".join(told)


def refuse(model: Any, label: str, difference: Difference, strict: bool = True) -> None:
    """Refuse parameters that do not fit a model.

    Raises:
        StateError: Something differs; or, if not `strict`, nothing fits.
    """
    nothing = not difference.matched and bool(difference.missing or difference.shapes)
    if difference and (strict or nothing):
        why = ": nothing in it does" if nothing else ""
        raise StateError(f"{label} does not fit this {type(model).__name__}{why}. {difference}.")
