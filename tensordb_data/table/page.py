"""Pages of a Selection, each from where the one before has ended."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from pymongo.errors import ExecutionTimeout

from tensordb_data.common.html import Html, Shown, paragraph
from tensordb_data.errors import QueryError, TimeLimitError
from tensordb_data.schema import Scalar
from tensordb_data.table.bounded import count_number, positive
from tensordb_data.table.cursors import Mark, after, from_text, to_text, value_of
from tensordb_data.table.fields import schema_fields
from tensordb_data.table.notebook import entities_html
from tensordb_data.table.walk import Position, Walk, can_walk
from tensordb_data.warehouse.bound_query import reported
from tensordb_data.warehouse.record import Record

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery

R = TypeVar("R", bound=Record)

_MOST = 10_000
_SINGLE = {
    "data": frozenset(("_id", "dataset", "_tdb.s")),
    "params": frozenset(("_id", "run", "step", "created")),
    "logs": frozenset(("_id", "run", "kind", "step", "time")),
    "jobs": frozenset((
        "_id", "kind", "status", "priority", "created", "due", "started", "finished", "worker", "progress", "attempts",
    )),
    "architectures": frozenset(("_id", "name", "version", "created", "format")),
}  # fmt: skip
"""The fields, by collection, that hold one value or none, so that a cursor may say after which."""


@dataclass(frozen=True)
class Page(Shown, Generic[R]):
    """A part of a Selection, in its order."""

    entities: list[R]
    next: str | None
    """Give this as `after=` for the next page; None after the last one."""
    looked: float
    """How much of all was looked through up to the end of this page, from 0 to 1, as far as that is known."""

    @property
    def done(self) -> bool:
        """Whether this is the last page."""
        return self.next is None

    def _html(self) -> Html:
        said = "the last page" if self.done else f"next: {self.next}"
        head = paragraph(f"{len(self.entities):,} entities; {said}; {self.looked:.0%} looked through")
        return Html(head + entities_html(self.entities)) if self.entities else head

    def __iter__(self) -> Iterator[R]:
        return iter(self.entities)

    def __len__(self) -> int:
        return len(self.entities)


class Found(NamedTuple):
    """What a page is made of."""

    docs: list[dict[str, Any]]
    next: str | None
    looked: float


def page(bound: BoundQuery, n: int, text: str | None, fields: Sequence[str] | None, seconds: float) -> Found:
    """See `Selection.page`."""
    count_number(n, "page: n")
    if n > _MOST:
        raise QueryError(f"page: n is at most {_MOST:,}; found {n}")
    limit = positive(seconds, "page: seconds")
    query = bound.query
    mark = Mark(0) if text is None else from_text(query, text)
    left = n if query.limit is None else min(n, query.limit - mark.count)
    if left <= 0:
        return Found([], None, 1.0)
    bare = query.replace(limit=None)
    asked = bound.replaced(bare if fields is None else bare.replace(fields=fields)).within(limit)
    with reported(query):
        walked = can_walk(asked)
        docs, after_it, looked = _walked(asked, left, mark, limit) if walked else _sorted(asked, left, mark)
    if after_it is not None and query.limit is not None and after_it.count >= query.limit:
        after_it = None
    return Found(docs, None if after_it is None else to_text(query, after_it), 1.0 if after_it is None else looked)


def _walked(bound: BoundQuery, n: int, mark: Mark, seconds: float) -> tuple[list[dict[str, Any]], Mark | None, float]:
    """In the default order of samples: what is found in time, and where the search has ended."""
    begin: Position | None = None
    if mark.keys is not None:
        if len(mark.keys) != 2 or not isinstance(mark.keys[0], str) or not isinstance(mark.keys[1], int):
            raise QueryError("page: after= is the `next` of an earlier page; begin with after=None")
        begin = (mark.keys[0], mark.keys[1])
    walk, end = Walk(bound, seconds, begin), begin
    docs: list[dict[str, Any]] = []
    with contextlib.suppress(ExecutionTimeout):
        for part in walk:
            cursor = bound.collection.find(bound.filter(part.filter), bound.projection())
            cursor = cursor.sort([("_tdb.s", 1)]).limit(n + 1 - len(docs))
            if (most := part.time_limit.get("maxTimeMS")) is not None:
                cursor = cursor.max_time_ms(most)
            docs += list(cursor)
            end = part.end
            if len(docs) > n:
                break
    if len(docs) > n:
        last = docs[n - 1]
        end = (last["dataset"], last["_tdb"]["s"])
        docs = docs[:n]
    elif walk.finished:
        return docs, None, 1.0
    return docs, Mark(mark.count + len(docs), end), walk.looked(end)


def _sorted(bound: BoundQuery, n: int, mark: Mark) -> tuple[list[dict[str, Any]], Mark | None, float]:
    """In any other order."""
    order = bound.sort()
    asked = bound.query.split is None and bound.query.frozen is None and bound.warehouse.index.is_server
    by_keys = asked and _are_single(bound, order)
    if mark.keys is not None and (not by_keys or len(mark.keys) != len(order)):
        raise QueryError("page: after= is of another query; begin with after=None")
    extra = None if mark.keys is None else after(order, mark.keys)
    skip = 0 if by_keys else mark.count
    projection = bound.projection()
    if projection is not None and by_keys:
        projection = {**projection, **dict.fromkeys((name for name, _ in order), 1)}
    try:
        cursor = bound.cursor(projection, extra)
        with contextlib.closing(cursor):
            if hasattr(cursor, "skip"):
                docs = list(cursor.skip(skip).limit(n + 1))
            else:
                docs = list(itertools.islice(cursor, skip, skip + n + 1))
    except ExecutionTimeout as error:
        fields = [name for name, _ in bound.query.sort or ()]
        raise TimeLimitError(
            f"a page of {bound.query.brief} takes longer than {bound.seconds:g} s: put the entities in order by an "
            f"index, db.{bound.query.collection}.create_index({fields!r}), or give it more time, page(seconds=...)"
        ) from error
    if len(docs) <= n:
        return docs, None, 1.0
    docs = docs[:n]
    keys = tuple(value_of(docs[-1], name) for name, _ in order) if by_keys else None
    return docs, Mark(mark.count + n, keys), 0.0


def _are_single(bound: BoundQuery, order: Sequence[tuple[str, int]]) -> bool:
    """Whether the fields of an order hold single values, so that a filter says what comes after some."""
    known = _SINGLE.get(bound.query.collection, frozenset({"_id"}))
    others = [name for name, _ in order if name not in known]
    if not others:
        return True
    if bound.query.collection != "data":
        return False
    fields = schema_fields(bound)
    kinds = [field for name in others for field in fields.get(name, {"": None}).values()]
    return all(isinstance(kind, Scalar) and kind.kind != "json" for kind in kinds)
