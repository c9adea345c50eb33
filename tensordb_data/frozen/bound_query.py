"""A query that selects a frozen set: it is answered from the blobs of the set, and not by the server."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from bson import ObjectId

from tensordb_data.errors import QueryError
from tensordb_data.frozen.columns import MISSING, PROVENANCE, TAGS, Block
from tensordb_data.frozen.frozen_set import FrozenSet, open_set
from tensordb_data.query.query import Query
from tensordb_data.warehouse.bound_query import BoundQuery

if TYPE_CHECKING:
    from tensordb_data.schema.schema import Schema
    from tensordb_data.warehouse.context import Warehouse

Doc = dict[str, Any]


def bind(warehouse: Warehouse, query: Query, seconds: float | None = None) -> BoundQuery:
    """A query, bound to the warehouse that answers it."""
    return (BoundQuery if query.frozen is None else FrozenQuery)(warehouse, query, seconds)


class FrozenQuery(BoundQuery):
    """A query that selects a frozen set, or its first samples. See `BoundQuery`."""

    @functools.cached_property
    def set(self) -> FrozenSet:
        """The set.

        Raises:
            NotFoundError: There is none of that name any more.
        """
        assert self.query.frozen is not None
        return open_set(self.warehouse, self.query.frozen)

    def schemas(self) -> dict[str, Schema]:
        """The schemas of its datasets, as they were."""
        return dict(self.set.schemas)

    def filter(self, extra: Mapping[str, Any] | None = None) -> NoReturn:
        """Refused: the server knows nothing of the samples of a frozen set."""
        raise self._unknown()

    def filters(self, extra: Mapping[str, Any] | None = None) -> NoReturn:
        """Refused, see `filter`."""
        raise self._unknown()

    def of_ids(self, ids: Sequence[Any]) -> NoReturn:
        """Refused, see `filter`."""
        raise self._unknown()

    def check_writable(self) -> NoReturn:
        """Refused: a frozen set never changes."""
        raise refused(self.query, "changed")

    def _unknown(self) -> QueryError:
        name = self.query.frozen.name if self.query.frozen is not None else ""
        return QueryError(
            f"the server is not asked about the frozen set {name!r}, whose samples are in blobs: count, iterate, stream"
            " or export it, read it by to_arrow(), to_pandas() or dataset(), or restore() it and ask db.data.find(...)"
        )

    def refuse_blobs(self, names: Any, what: str) -> None:
        blobs = set(self.set.blobs)
        for name in names:
            if name.split(".")[0] in blobs:
                raise QueryError(f"{what} needs values in the index, and field {name!r} is a blob")

    def replaced(self, query: Query) -> BoundQuery:
        return bind(self.warehouse, query, self.seconds)

    def narrowed(self, extra: Mapping[str, Any]) -> NoReturn:
        """Refused, see `filter`."""
        raise self._unknown()

    def within(self, seconds: float | None) -> BoundQuery:
        return FrozenQuery(self.warehouse, self.query, seconds)

    def count(self, extra: Mapping[str, Any] | None = None) -> int:
        if extra:
            raise self._unknown()
        return len(self.set) if self.query.limit is None else min(self.query.limit, len(self.set))

    def ids(self) -> list[Any]:
        blocks = self.set.blocks((), (), limit=self.query.limit)
        return [block.id(row) for block in blocks for row in range(len(block))]

    def distinct(self, field: str) -> list[Any]:
        self.refuse_blobs([field], "distinct")
        found: dict[str, Any] = {}
        for doc in self.cursor({field.split(".")[0]: 1}):
            for value in _at(doc, field.split(".")):
                for one in value if isinstance(value, list) else [value]:
                    found.setdefault(f"{type(one).__name__} {one!r}", one)
        return list(found.values())

    def cursor(
        self, projection: Mapping[str, Any] | None = None, extra: Mapping[str, Any] | None = None, session: Any = None
    ) -> Documents:
        """The documents of the samples, in order, as they were. They differ from those in the index in `_tdb`.

        Args:
            projection: As for the server; what is within a field is not left out.
            extra: None.
            session: Not used: there is one state only.
        """
        if extra:
            raise self._unknown()
        return Documents(self.set, self.query, self.projection() if projection is None else projection)


class Documents(Iterator[Doc]):
    """The documents of the samples of a frozen set. `_tdb.f` is the `_id` of the set, which has their schema."""

    def __init__(self, set: FrozenSet, query: Query, projection: Mapping[str, Any] | None) -> None:
        values, blobs = _wanted(set, projection)
        self._docs = _documents(set, values, blobs, query.limit)

    def __next__(self) -> Doc:
        return next(self._docs)

    def close(self) -> None:
        """Read no more."""
        self._docs.close()


def _documents(set: FrozenSet, values: Sequence[str], blobs: Sequence[str], limit: int | None) -> Any:
    number = 0
    for block in set.blocks(values, blobs, limit=limit, at_once=1):
        yield from block_documents(block, set.warehouse.project, number, set.id)
        number += len(block)


def block_documents(block: Block, project: str, before: int, set: ObjectId | None = None) -> Iterator[Doc]:
    """The documents of the samples of a block.

    Args:
        block: The samples.
        project: Their project.
        before: How many samples come before them.
        set: The `_id` of the frozen set that they are of.
    """
    names = [name for name in block.values if name not in (TAGS, PROVENANCE)]
    columns = [block.values[name].items(MISSING) for name in names]
    tags = block.values[TAGS].items(MISSING) if TAGS in block.values else None
    provenance = block.values[PROVENANCE].items(MISSING) if PROVENANCE in block.values else None
    refs = {name: _parts(found) for name, found in block.refs.items()}
    for row in range(len(block)):
        doc: Doc = {"_id": block.id(row), "dataset": block.datasets[block.dataset[row]]}
        if tags is not None and tags[row] is not MISSING:
            doc["tags"] = _own(tags[row])
        for name, column in zip(names, columns, strict=True):
            if (value := column[row]) is not MISSING:
                doc[name] = _own(value)
        if provenance is not None and provenance[row] is not MISSING:
            doc[PROVENANCE] = _own(provenance[row])
        internals: Doc = {"p": project, "s": before + row + 1}
        if set is not None:
            internals["f"] = set
        if parts := {name: found[row] for name, found in refs.items() if found[row] is not None}:
            internals["b"] = parts
        doc["_tdb"] = internals
        yield doc


def _parts(refs: Any) -> list[Doc | None]:
    segments, compressed = refs.segments, refs.compressed
    flags = [False] * len(refs) if compressed is None else compressed.tolist()
    rows = zip(refs.segment.tolist(), refs.offset.tolist(), refs.length.tolist(), flags, strict=True)
    return [None if n < 0 else {"k": segments[k], "o": o, "n": n, **({"z": True} if z else {})} for k, o, n, z in rows]


def _own(value: Any) -> Any:
    """The value itself, or a copy of one that can be changed."""
    if isinstance(value, list):
        return [_own(item) for item in value]
    if isinstance(value, dict):
        return {name: _own(item) for name, item in value.items()}
    return value


def _wanted(set: FrozenSet, projection: Mapping[str, Any] | None) -> tuple[list[str], list[str]]:
    """The index fields and the blobs that a projection asks for."""
    if projection is None:
        return set.values, set.blobs
    named = {name for name, value in projection.items() if value and name != "_id"}
    if not named and projection and not all(projection.values()) and "_id" not in projection:
        out = {name for name, value in projection.items() if not value}
        blobs = [] if "_tdb" in out or "_tdb.b" in out else [n for n in set.blobs if f"_tdb.b.{n}" not in out]
        return [name for name in set.values if name not in out], blobs
    roots = {name.split(".")[0] for name in named}
    all_blobs = "_tdb" in named or "_tdb.b" in named
    inside = {name.split(".")[2] for name in named if name.startswith("_tdb.b.")}
    return [name for name in set.values if name in roots], [n for n in set.blobs if all_blobs or n in inside]


def _at(value: Any, path: Sequence[str]) -> Iterator[Any]:
    """The values at a path, as the server finds them: through the items of lists, too."""
    if not path:
        yield value
    elif isinstance(value, Mapping):
        if path[0] in value:
            yield from _at(value[path[0]], path[1:])
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, Mapping):
                yield from _at(item, path)


def refused(query: Query, what: str) -> QueryError:
    """The error for a change of a frozen set."""
    name = query.frozen.name if query.frozen is not None else ""
    return QueryError(
        f"the frozen set {name!r} cannot be {what}: its samples and their values stay as they were frozen. Change the"
        f" samples of now, db.data.find(...), and freeze them under another name; db.data.frozen({name!r}).drop()"
        " removes the set"
    )
