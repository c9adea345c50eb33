"""How objects show themselves in notebooks: tables of HTML, of bounded size, which never raise an error.

There are only tables, inline styles of padding and alignment, and small images: notebooks remove anything else, and
have colours of their own. Every value is escaped.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from tensordb_data.common.patience import impatient
from tensordb_data.common.text_table import brief, escaped

IMAGE = 8_000
"""Bytes of an image at most."""
ROWS = 20
COLUMNS = 12
_MEDIA = frozenset(("image/png", "image/jpeg"))
_TEXT = 2_000  # characters of a plain repr
_LEFT, _RIGHT = "text-align:left;padding:2px 8px", "text-align:right;padding:2px 8px"


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def of_value(value: Any) -> Html:
    """A value as HTML, cut to 60 characters."""
    return value if isinstance(value, Html) else Html(html.escape(brief(value)))


def paragraph(text: str) -> Html:
    """A line of text."""
    return Html(f"<p>{html.escape(escaped(text[:_TEXT]))}</p>")


def table(names: Sequence[str], rows: Iterable[Sequence[Any]], numbers: Collection[str] = ()) -> Html:
    """A table of at most 12 columns and 20 rows; what is left out is said below it.

    Args:
        names: The names of the columns; with none of them, there is no head.
        rows: The values, HTML or anything else.
        numbers: The columns that stand on the right.
    """
    rows = list(rows)
    styles = [_RIGHT if name in numbers else _LEFT for name in names[:COLUMNS]]
    shown = f"<thead>{_row('th', names, styles)}</thead>" if any(names) else ""
    body = "".join(_row("td", row, styles) for row in rows[:ROWS])
    left = [f"{len(rows) - ROWS:,} more rows"] if len(rows) > ROWS else []
    if len(names) > COLUMNS:
        left.append(f"columns {', '.join(map(brief, names[COLUMNS : COLUMNS + ROWS]))}")
    more = paragraph(f"not shown: {'; '.join(left)}") if left else ""
    return Html(f"<table>{shown}<tbody>{body}</tbody></table>{more}")


def _row(tag: str, cells: Sequence[Any], styles: Sequence[str]) -> str:
    return f"<tr>{''.join(map(_cell, itertools.repeat(tag), cells, styles))}</tr>"


def _cell(tag: str, value: Any, style: str) -> str:
    return f'<{tag} style="{style}">{of_value(value)}</{tag}>'


def pairs(items: Iterable[tuple[str, Any]]) -> Html:
    """A table of names and values."""
    return table(["", ""], items)


def image(media: str, data: bytes, label: str) -> Html:
    """A small picture; the label alone, where it is not small."""
    if not data or len(data) > IMAGE or media not in _MEDIA:
        return of_value(label)
    text = html.escape(brief(label))
    return Html(f'<img alt="{text}" title="{text}" src="data:{media};base64,{base64.b64encode(data).decode()}">')


class Shown:
    """What shows itself in a notebook."""

    __slots__ = ()

    def _html(self) -> Html:
        """What is shown. An error becomes a line below the plain repr."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        try:
            with impatient():
                return f"<div>{self._html()}</div>"
        except Exception as error:  # a cell of a notebook must not end with a traceback because of how it is shown
            return f"<div>{_plain(self)}{paragraph(f'{type(error).__name__}: {_line(error)}')}</div>"


class Report(Shown):
    """A dataclass that shows itself as a table of its fields."""

    __slots__ = ()

    def _html(self) -> Html:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # its subclasses are dataclasses
        return pairs((field.name, getattr(self, field.name)) for field in fields if field.repr)


class Figures(dict[str, Any], Shown):
    """A dict that shows itself as a table."""

    __slots__ = ()

    def _html(self) -> Html:
        return pairs(_flat(self, ""))


def _flat(figures: Mapping[str, Any], above: str) -> Iterable[tuple[str, Any]]:
    for name, value in figures.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _plain(shown: object) -> Html:
    try:
        text = repr(shown)
    except Exception:
        text = f"<{type(shown).__name__}>"
    return Html(f"<pre>{html.escape(escaped(text[:_TEXT]))}</pre>")


def _line(error: Exception) -> str:
    try:
        lines = str(error).splitlines()
    except Exception:
        return ""
    return lines[0] if lines else ""
