"""Lists that are shown as tables."""

from __future__ import annotations

import abc
from collections.abc import Collection, Iterable, Sequence
from typing import Any, ClassVar, TypeVar

from tensordb_data.common.html import Html, Report, Shown, paragraph, table
from tensordb_data.common.text_table import text_table

_SHOWN = 100


class Row(Report, abc.ABC):
    """What a `Listing` holds."""

    COLUMNS: ClassVar[Sequence[str]]
    """The names of its cells."""
    NUMBERS: ClassVar[Collection[str]]
    """Those that are numbers."""

    @abc.abstractmethod
    def cells(self) -> Sequence[Any]:
        """What is shown of it."""


T = TypeVar("T", bound=Row)


class Listing(list[T], Shown):
    """A list that is a table when it is printed.

    Args:
        items: The items.
        nothing: What is shown where there are none.
    """

    def __init__(self, items: Iterable[T] = (), nothing: str = "nothing") -> None:
        super().__init__(items)
        self._nothing = nothing

    def _html(self) -> Html:
        if not self:
            return paragraph(self._nothing)
        return table(self[0].COLUMNS, [each.cells() for each in self[: _SHOWN + 1]], self[0].NUMBERS)

    def __repr__(self) -> str:
        if not self:
            return self._nothing
        more = f"\n… and {len(self) - _SHOWN:,} more" if len(self) > _SHOWN else ""
        return f"{text_table(self[0].COLUMNS, [each.cells() for each in self[:_SHOWN]], self[0].NUMBERS)}{more}"
