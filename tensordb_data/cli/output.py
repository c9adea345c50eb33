"""What the commands print. All output goes through here: stored text must not reach the terminal as commands to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import typer

from tensordb_data.common.text_table import escaped

if TYPE_CHECKING:
    from rich.console import RenderableType

_PIPED = 160  # columns where nobody looks at the lines, but `grep` or `less -S`


def say(text: str, *, err: bool = False) -> None:
    """Print a text and an end of the line.

    Args:
        text: The text.
        err: Whether this goes to the standard error.
    """
    typer.echo(escaped(text), err=err)


def grid(
    names: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    least: Sequence[int] | None = None,
    colors: Mapping[str, str] | None = None,
    numbers: Iterable[str] = (),
) -> None:
    """Print a table.

    Args:
        names: The names of its columns.
        rows: The cells.
        least: How wide the columns are at least. Then each row is one line. None to break cells into lines.
        colors: Of cells that hold exactly this text.
        numbers: The names of columns whose cells stand on the right.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for number, name in enumerate(names):
        if least is None:
            table.add_column(Text(escaped(name)), justify="right" if name in numbers else "left")
        else:
            table.add_column(Text(escaped(name)), no_wrap=True, overflow="ellipsis", min_width=least[number])
    for row in rows:
        table.add_row(*(Text(escaped(cell), style=(colors or {}).get(cell, "")) for cell in row))
    show(table)


def show(what: RenderableType) -> None:
    """Print something that rich draws, of which all stored text is escaped already."""
    from rich.console import Console

    class Pipe(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # `| head` has seen enough, which is no failure

    console = Pipe(width=_width())
    console.print(what)
    console.file.flush()  # whoever reads a pipe sees it at once, and one that nobody reads is noticed


def note(text: str) -> None:
    """Print a remark below a table, less visible than it."""
    from rich.text import Text

    show(Text(escaped(text), style="dim"))


def width() -> int:
    """How many columns a line has."""
    from rich.console import Console

    return _width() or Console().width


def _width() -> int | None:
    """The width that is not that of the terminal."""
    from rich.console import Console

    return None if Console().is_terminal else _PIPED
