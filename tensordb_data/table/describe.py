"""A summary of each field of the selected entities."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from tensordb_data.common.chunks import batched
from tensordb_data.common.html import Html, Shown, paragraph, table
from tensordb_data.common.sizes import show_size
from tensordb_data.common.text_table import brief, text_table
from tensordb_data.mongo.retry import retry_while_unavailable
from tensordb_data.table.fields import Fields, schema_fields
from tensordb_data.table.tally import Tally
from tensordb_data.warehouse.bound_query import BoundQuery, reported

if TYPE_CHECKING:
    from tensordb_data.schema import Field

_CHUNK = 1_000
_TOP = 5
_SHOWN_TOP = 3
_MOST_FIELDS = 1_000  # of entities that have no schema, such as rows whose metrics have any names
_COLUMNS = ("field", "kind", "present", "missing", "min", "mean", "max", "different", "most frequent")
_NUMBERS = frozenset(("present", "missing", "min", "mean", "max", "different"))


@dataclass(frozen=True)
class FieldSummary:
    """What the selected entities have in one field."""

    name: str
    kind: str
    """The kind of the field, as its schema has it; without a schema, the kinds of its values."""
    present: int
    """How many entities have a value."""
    missing: int
    """How many have none."""
    nan: int = 0
    """How many values are NaN."""
    min: Any = None
    """The least number or time, NaN left out. Of a blob, the bytes of the smallest as stored."""
    max: Any = None
    """The greatest number or time, or the bytes of the largest blob."""
    mean: float | None = None
    """The mean of the numbers, or the mean bytes of the blobs."""
    distinct: int | None = None
    """How many different values there are; None for blobs and above 10,000."""
    top: Mapping[Any, int] = field(default_factory=dict)
    """The five most frequent values, most frequent first, where any occurs twice."""
    nbytes: int | None = None
    """Of a blob, the stored bytes of all."""

    @property
    def _row(self) -> tuple[Any, ...]:
        numbers: tuple[Any, ...] = (self.min, self.mean, self.max)
        if self.nbytes is not None:
            numbers = tuple(None if number is None else show_size(number) for number in numbers)
            frequent: Any = f"{show_size(self.nbytes)} in all"
        else:
            frequent = {brief(value): n for value, n in list(self.top.items())[:_SHOWN_TOP]} or None
        missing = f"{self.missing} + {self.nan} NaN" if self.nan else self.missing
        return self.name, self.kind, self.present, missing, *numbers, self.distinct, frequent


class Description(Mapping[str, FieldSummary], Shown):
    """A summary of each field, by its name; a table when it is printed.

    Args:
        count: How many entities were selected.
        of: What they are, for people.
        fields: The summaries.
    """

    def __init__(self, count: int, of: str, fields: Iterable[FieldSummary]) -> None:
        self.count, self.of = count, of
        self._fields = {each.name: each for each in fields}

    def __getitem__(self, name: str) -> FieldSummary:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        """The rows of the table; `columns` are their names."""
        return [each._row for each in self._fields.values()]

    columns = _COLUMNS

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    def _html(self) -> Html:
        return Html(paragraph(f"{self.count:,} of {self.of}") + table(_COLUMNS, self.rows, _NUMBERS))

    def __repr__(self) -> str:
        head = f"{self.count:,} of {self.of}"
        return f"{head}\n{text_table(_COLUMNS, self.rows, _NUMBERS)}" if self._fields else head


def describe(bound: BoundQuery) -> Description:
    """See `Selection.describe`."""
    query = bound.query
    if query.limit is None and query.split is None and query.sort is not None:
        bound = bound.replaced(query.replace(sort=None))  # the order means nothing here
    fields = schema_fields(bound) if query.collection == "data" else None
    if fields is not None and query.fields is not None:
        roots = {name.split(".")[0] for name in query.fields}
        fields = {name: kinds for name, kinds in fields.items() if name in roots}
    with reported(query):
        return retry_while_unavailable(partial(_read, bound, fields), reads=True)


def _read(bound: BoundQuery, fields: Fields | None) -> Description:
    of = f"{bound.query.brief} of project {bound.warehouse.project!r}"
    if fields is None:
        return _read_any(bound, of)
    blobs = {name: kinds for name, kinds in fields.items() if any(kind.is_blob for kind in kinds.values())}
    scalars = {name: kinds for name, kinds in fields.items() if any(not kind.is_blob for kind in kinds.values())}
    tallies = [Tally(name) for name in ("tags", *scalars)]
    sizes = [(name, Tally(f"_tdb.b.{name}.n")) for name in blobs]
    several = Tally("dataset")
    shown = [tally.name for tally in (*tallies, *(tally for _, tally in sizes))]
    count = 0
    with contextlib.closing(bound.cursor({"_id": 1, "dataset": 1, **dict.fromkeys(shown, 1)})) as cursor:
        for docs in batched(cursor, _CHUNK):
            count += len(docs)
            for tally in (several, *tallies, *(tally for _, tally in sizes)):
                tally.add(docs)
    found = {tally.name: _summary(tally, scalars.get(tally.name)) for tally in tallies}
    found |= {f"{name} (blob)" if name in found else name: _blob(name, tally, blobs[name]) for name, tally in sizes}
    order = [name for name in fields if name in found] + [name for name in found if name not in fields]
    first = [_summary(several, None)] if len(several.values or {}) != 1 else []
    return Description(count, of, [*first, *(found[name] for name in order)])


def _read_any(bound: BoundQuery, of: str) -> Description:
    """Of entities without a schema: all fields that occur."""
    tallies: dict[str, Tally] = {}
    count = 0
    with contextlib.closing(bound.cursor()) as cursor:
        for docs in batched(cursor, _CHUNK):
            for name in dict.fromkeys(name for doc in docs for name in doc):
                if name not in tallies and name not in ("_id", "_tdb") and len(tallies) < _MOST_FIELDS:
                    tallies[name] = Tally(name)
                    tallies[name].missing = count
            count += len(docs)
            for tally in tallies.values():
                tally.add(docs)
    return Description(count, of, [_summary(tally, None) for tally in tallies.values()])


def _summary(tally: Tally, kinds: Mapping[str, Field] | None) -> FieldSummary:
    kind = " | ".join(sorted(tally.kinds)) if kinds is None else _kind(kinds)
    low, high = tally.range
    top = tally.top(_TOP)
    return FieldSummary(
        tally.name, kind, tally.present, tally.missing, tally.nan, low, high, tally.mean, tally.distinct,
        top if any(n > 1 for n in top.values()) else {},
    )  # fmt: skip


def _blob(name: str, tally: Tally, kinds: Mapping[str, Field]) -> FieldSummary:
    low, high = tally.range
    return FieldSummary(
        name, _kind(kinds), tally.present, tally.missing, 0, low, high, tally.mean, nbytes=int(tally.total)
    )


def _kind(kinds: Mapping[str, Field]) -> str:
    return " | ".join(dict.fromkeys(map(repr, kinds.values())))
