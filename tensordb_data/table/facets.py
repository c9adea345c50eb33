"""What values the fields have and how often, in bounded time: counted where there are few entities, else estimated."""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tensordb_data.common.html import Report
from tensordb_data.common.text_table import brief
from tensordb_data.errors import QueryError
from tensordb_data.mongo.retry import retry_while_unavailable
from tensordb_data.schema import Scalar
from tensordb_data.table.bounded import count_number, positive
from tensordb_data.table.counts import most_frequent
from tensordb_data.table.draw import draw
from tensordb_data.table.estimate import check_seed, draw_places, drawable, few
from tensordb_data.table.fields import check_field, schema_fields
from tensordb_data.table.paths import values_at
from tensordb_data.table.tally import Tally
from tensordb_data.warehouse.bound_query import reported

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery

LEAST = 30
"""How often a value is drawn, at least, before it is told how often it occurs: below, that is mostly chance."""
_MOST_FIELDS = 50
_NOT_SHOWN = frozenset(("_id", "_tdb", "provenance"))


@dataclasses.dataclass(frozen=True)
class Facet(Report):
    """The values of one field, or a histogram of them. Numbers of entities are estimates, unless `exact`."""

    field: str
    exact: bool
    """Whether all matching entities were read."""
    present: int
    """How many entities have a value."""
    missing: int
    """How many have none."""
    values: Mapping[Any, int] = dataclasses.field(default_factory=dict)
    """The most frequent values, most frequent first; of an estimate, only those that were drawn 30 times and more."""
    distinct: int | None = None
    """How many different values there are, among those that were read; None if that is not known."""
    nan: int = 0
    """How many numbers are NaN."""
    edges: tuple[Any, ...] = ()
    """Of a histogram, where the bins begin, and where the last one ends."""
    bins: tuple[int, ...] = ()
    """Of a histogram, how many values are in each bin; the last one has its end, too."""

    @property
    def is_histogram(self) -> bool:
        """Whether there are bins."""
        return bool(self.bins)

    def __str__(self) -> str:
        about = "" if self.exact else "≈ "
        if self.bins:
            shown = f"{brief(self.edges[0])} to {brief(self.edges[-1])}, {len(self.bins)} bins"
        elif self.values:
            shown = ", ".join(f"{brief(value)}: {about}{n:,}" for value, n in self.values.items())
        else:
            shown = f"{about}{self.distinct:,} different values" if self.distinct else "no values"
        return f"{brief(self.field)}: {shown}{f'; missing: {about}{self.missing:,}' if self.missing else ''}"


def facets(
    bound: BoundQuery, fields: Sequence[str] | None, top: int, bins: int, sample: int, seconds: float, seed: int = 0
) -> dict[str, Facet]:
    """See `Selection.facets`."""
    for name, value in (("top", top or 1), ("bins", bins), ("sample", sample)):
        count_number(value, f"facets: {name}")
    check_seed(seed, "facets")
    limit = positive(seconds, "facets: seconds")
    names = _names(bound, fields)
    with reported(bound.query):
        docs, factor, exact = retry_while_unavailable(
            partial(_read, bound, names or (), sample, seed, limit), reads=True
        )
    if names is None:
        names = [name for name in dict.fromkeys(key for doc in docs for key in doc) if name not in _NOT_SHOWN]
        names = names[:_MOST_FIELDS]
    return {name: _facet(name, docs, factor, exact, top, bins) for name in names}


def histogram(bound: BoundQuery, field: str, bins: int, sample: int, seconds: float, seed: int) -> Facet:
    """See `Selection.histogram`."""
    (found,) = facets(bound, [field], 0, bins, sample, seconds, seed).values()
    if found.present > found.nan and not found.bins:
        raise QueryError(
            f"histogram: {field!r} holds other values than numbers or times; facets([{field!r}]) counts them"
        )
    return found


def _names(bound: BoundQuery, fields: object) -> list[str] | None:
    """The fields to count; None for those that occur, of entities without a schema."""
    if fields is not None:
        if isinstance(fields, (str, bytes, Mapping)) or not isinstance(fields, Sequence) or not fields:
            raise QueryError(f'facets takes a list of names such as ["label", "split"]; found {fields!r:.100}')
        for name in fields:
            check_field(bound, name, "facets")
        return list(dict.fromkeys(fields))
    if bound.query.collection != "data":
        return None
    found = schema_fields(bound)
    several = ["dataset"] if len({name for kinds in found.values() for name in kinds}) > 1 else []
    wanted = None if bound.query.fields is None else {name.split(".")[0] for name in bound.query.fields}
    plain = [
        name
        for name, kinds in found.items()
        if (wanted is None or name in wanted)
        and all(isinstance(kind, Scalar) and kind.kind != "json" for kind in kinds.values())
    ]
    return [*several, *plain, "tags"]


def _read(
    bound: BoundQuery, names: Sequence[str], sample: int, seed: int, seconds: float
) -> tuple[Sequence[Mapping[str, Any]], float, bool]:
    """Documents, how many entities each of them stands for, and whether these are all."""
    roots = {name.split(".")[0]: 1 for name in names}
    projection = {"_id": 1, **roots} if roots else {"_tdb": 0}
    if few(bound, seconds / 2) is not None:
        cursor = bound.within(seconds).cursor(projection)
        return list(cursor), 1.0, True
    if drawable(bound):
        drawn = draw_places(bound, sample, seed, projection, seconds)
        return drawn.docs, drawn.factor, drawn.places == drawn.total
    limited = bound.within(seconds)
    total = limited.count()
    if bound.query.limit is not None or bound.query.split is not None:
        chosen = draw(limited.replaced(bound.query.replace(fields=list(roots) or None)), sample, seed)
        return chosen, total / max(1, len(chosen)), total <= len(chosen)
    stages = [{"$match": bound.filter()}, {"$sample": {"size": sample}}, {"$project": projection}]
    docs = list(bound.collection.aggregate(stages, allowDiskUse=True, **limited.time_limit))
    return docs, total / max(1, len(docs)), total <= len(docs)


def _facet(name: str, docs: Sequence[Mapping[str, Any]], factor: float, exact: bool, top: int, bins: int) -> Facet:
    tally = Tally(name)
    tally.add(docs)

    def about(n: int) -> int:
        return round(n * factor)

    low, high = tally.range
    known: dict[str, Any] = {
        "field": name, "exact": exact, "present": about(tally.present), "missing": about(tally.missing),
        "nan": about(tally.nan), "distinct": tally.distinct,
    }  # fmt: skip
    many = tally.distinct is None or tally.distinct > top
    if many and low is not None and (low != high or not top):
        edges, counts = _histogram(name, docs, low, high, bins)
        return Facet(**known, edges=edges, bins=tuple(about(n) for n in counts))
    often = {key: n for key, n in (tally.values or {}).items() if exact or n >= LEAST}
    return Facet(**known, values={value: about(n) for value, n in most_frequent(often.items(), top).items()})


def _histogram(
    name: str, docs: Sequence[Mapping[str, Any]], low: Any, high: Any, bins: int
) -> tuple[tuple[Any, ...], list[int]]:
    """Bins of one width. Those of whole numbers begin at whole numbers."""
    times = isinstance(low, dt.datetime)
    values = np.array([_number(value, low) for doc in docs for value in values_at(doc, name)], float)
    values = values[np.isfinite(values)]
    start, end = (0.0, (high - low).total_seconds()) if times else (float(low), float(high))
    if not (math.isfinite(start) and math.isfinite(end)):
        start, end = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if isinstance(low, int) and isinstance(high, int):
        width = -(-(high - low + 1) // bins)
        bins = -(-(high - low + 1) // width)
        end = start + bins * width
    counts, edges = np.histogram(values, bins=bins, range=(start, max(end, math.nextafter(start, math.inf))))
    shown: list[Any] = edges.tolist()
    if times:
        shown = [low + dt.timedelta(seconds=edge) for edge in shown]
    return tuple(shown), [int(n) for n in counts]


def _number(value: Any, low: Any) -> float:
    return (value - low).total_seconds() if isinstance(low, dt.datetime) else float(value)
