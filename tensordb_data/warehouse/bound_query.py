"""A query bound to a warehouse: the documents that it selects."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError

from tensordb_data.common.chunks import chunks
from tensordb_data.errors import ConnectError, QueryError, TimeLimitError, UnsupportedError
from tensordb_data.mongo.errors import (
    AUTHENTICATION_FAILED,
    INTERRUPTED,
    NO_INDEX,
    TIME_IS_UP,
    UNAUTHORIZED,
    first_line,
)
from tensordb_data.mongo.retry import read_all, retry_while_unavailable
from tensordb_data.query.blob_filters import mentioned, with_presence
from tensordb_data.query.datasets import selected_datasets
from tensordb_data.query.merged_cursor import MergedCursor, Order
from tensordb_data.query.metric_order import ByMetric, metrics_of
from tensordb_data.query.query import Query, names, too_large

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

    from tensordb_data.schema.schema import Schema
    from tensordb_data.warehouse.context import Warehouse

_IDS = 10_000

_BY_ID: Sequence[tuple[str, int]] = (("_id", 1),)
_ORDER: Mapping[str, Sequence[tuple[str, int]]] = {
    "data": (("dataset", 1), ("_tdb.s", 1)),
    "architectures": (("name", 1), ("version", -1)),
}
"""The order of a query that asks for none, by collection; total. That of `_id` for the others."""
_ALWAYS: Mapping[str, Sequence[str]] = {
    "data": ("tags", "dataset", "_tdb.p", "_tdb.s"),
    "architectures": ("tags", "_tdb", "name", "version", "format", "factory", "kwargs"),
}
"""What is read of an entity whatever fields a query names, by collection. Tags and `_tdb` for the others."""


def default_order(collection: str) -> list[tuple[str, int]]:
    """The order of the entities of a collection where a query asks for none; total."""
    return list(_ORDER.get(collection, _BY_ID))


class BoundQuery:
    """A query, and the warehouse that it is asked of. Nothing is read until one of its methods is called.

    Args:
        warehouse: The warehouse; its project scopes the query.
        query: The query.
        seconds: The most time that the server may take for one read; None for no limit.
    """

    def __init__(self, warehouse: Warehouse, query: Query, seconds: float | None = None) -> None:
        self.warehouse, self.query, self.seconds = warehouse, query, seconds

    @property
    def collection(self) -> Any:
        """The pymongo collection of the entities."""
        return self.warehouse.index[self.query.collection]

    def filter(self, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The filter to send: the project's entities, those of the user's filter, and `extra`.

        Raises:
            QueryError: The server does not take it, and the caller cannot ask in several parts.
        """
        if self.query.split is not None:
            raise too_large(self.query.filter)
        return self._scoped(self.translated, extra)

    def filters(self, extra: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """The filters to send; more than one if the `$in` of the query is split.

        An entity may match several of them, unless they are split over `_id`.
        """
        split = self.query.split
        parts = [self.translated] if split is None else map(self._translate, split.parts)
        return [self._scoped(part, extra) for part in parts]

    def of_ids(self, ids: Sequence[Any]) -> dict[str, Any]:
        """The filter to send for those of some ids, which this query has found, that still match.

        Raises:
            QueryError: See `check_writable`.
        """
        if self.query.split is None:
            return self.filter({"_id": {"$in": ids}})
        self.check_writable()
        return self._scoped(self._translate(self.query.split.with_values(ids)), None)

    def check_writable(self) -> None:
        """Refuse to change what is found in several parts that overlap: each part finds what another has changed.

        Raises:
            QueryError: The filter is split over another field than `_id`.
        """
        if self.query.split is not None and self.query.split.field != "_id":
            raise too_large(self.query.filter)

    def schemas(self) -> dict[str, Schema]:
        """The schemas of the datasets whose samples it may match."""
        named, datasets = selected_datasets(self.query.filter), self.warehouse.datasets
        return datasets.schemas(sorted(datasets.versions() if named is None else set(named)))

    def _scoped(self, *filters: Mapping[str, Any] | None) -> dict[str, Any]:
        if self.query.frozen is not None:  # see `frozen.bound_query`, which asks the server nothing
            raise QueryError(f"the frozen set {self.query.frozen.name!r} is not selected by a filter of the server")
        parts = [part for part in (*filters, self._hidden) if part]
        project = {"_tdb.p": self.warehouse.project}
        return {"$and": [project, *parts]} if parts else project

    @functools.cached_property
    def _hidden(self) -> dict[str, Any]:
        """The filter that leaves out the rows of runs that a later attempt has superseded, unless the user's has one.

        Only runs that have such rows have this mark. So the others are counted in the index alone, as before.
        """
        if self.query.collection != "logs" or "superseded" in (names(self.query.filter) or ()):
            return {}
        named = self.query.filter.get("run")
        exact = {"name": named} if isinstance(named, str) else {}
        marked = {"_tdb.p": self.warehouse.project, "_tdb.hides": True, **exact}
        hides = retry_while_unavailable(lambda: self.warehouse.index["runs"].find_one(marked, {"_id": 1}), reads=True)
        return {} if hides is None else {"superseded": None}

    @functools.cached_property
    def translated(self) -> dict[str, Any]:
        """The user's filter, as the index understands it: fields that are blobs are looked for by their references.

        Raises:
            QueryError: It asks for more of a blob than whether a sample has it.
        """
        return self._translate(self.query.filter)

    def _translate(self, filter: dict[str, Any]) -> dict[str, Any]:
        blobs, named = self._mentioned_blobs
        return with_presence(filter, blobs, named) if blobs else filter

    @functools.cached_property
    def _mentioned_blobs(self) -> tuple[dict[str, frozenset[str]], list[str] | None]:
        """The blobs among the fields of the filter, each with its datasets; and the datasets that the filter names."""
        filter = self.query.filter
        fields = mentioned(filter) if self.query.collection == "data" else None
        return (self._blobs(fields), selected_datasets(filter)) if fields else ({}, None)

    def _blobs(self, fields: Iterable[str]) -> dict[str, frozenset[str]]:
        return self.warehouse.datasets.blob_datasets(fields, selected_datasets(self.query.filter))

    def refuse_blobs(self, names: Iterable[str], what: str) -> None:
        """Refuse to order or to list the values of fields that are blobs, which the index does not see.

        Raises:
            QueryError: One of the fields is a blob in a dataset that the query may match.
        """
        fields = {name.split(".")[0] for name in names} - {"_id", "dataset", "tags"}
        if self.query.collection == "data" and (found := self._blobs(fields)):
            name, datasets = next(iter(found.items()))
            raise QueryError(f"{what} needs values in the index, and field {name!r} is a blob in dataset "
                             f"{', '.join(map(repr, sorted(datasets)))}")  # fmt: skip

    def narrowed(self, extra: Mapping[str, Any]) -> BoundQuery:
        """This query with a further filter; of one without a limit."""
        parts = [part for part in (self.query.filter, extra) if part]
        return self.replaced(self.query.replace(filter={"$and": parts}))

    def replaced(self, query: Query) -> BoundQuery:
        """Another query, of the same warehouse and within the same time."""
        return BoundQuery(self.warehouse, query, self.seconds)

    def within(self, seconds: float | None) -> BoundQuery:
        """The same query, within another time."""
        return BoundQuery(self.warehouse, self.query, seconds)

    @property
    def time_limit(self) -> dict[str, int]:
        """The option of pymongo's methods that limits their time, if there is a limit."""
        if self.seconds is None or not self.warehouse.index.is_server:
            return {}
        return {"maxTimeMS": max(1, round(self.seconds * 1000))}

    def sort(self) -> list[tuple[str, int]]:
        """A total order: equal entities keep one order in every run."""
        if self.query.sort is None:
            return default_order(self.query.collection)
        self.refuse_blobs([name for name, _ in self.query.sort], "a sort")
        ties = [] if any(name == "_id" for name, _ in self.query.sort) else [("_id", 1)]
        return [*self.query.sort, *ties]

    def cursor(
        self,
        projection: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
        session: ClientSession | None = None,
    ) -> Any:
        """A cursor over the documents, in order.

        Args:
            projection: What to read of each; None for the fields of the query.
            extra: A further filter.
            session: Of a snapshot, of samples; the cursor reads the state of that time.
        """
        if projection is None:
            projection = self.projection()
        order, limit = self.sort(), self.query.limit
        if self.query.split is None:
            if self.query.collection == "params" and metrics_of(self.query.sort) and self.warehouse.index.is_server:
                return ByMetric(self.collection, self.filter(extra), order, limit, projection, self.time_limit)
            return self._find(self.filter(extra), projection, order, session)
        if projection is not None:
            projection = {**projection, **dict.fromkeys([name for name, _ in order], 1)}
        return MergedCursor(
            lambda: [self._find(filter, projection, order, session) for filter in self.filters(extra)], order, limit
        )

    def _find(self, filter: Mapping[str, Any], projection: Any, order: Order, session: ClientSession | None) -> Any:
        cursor = self.collection.find(filter, projection, session=session).sort(list(order))
        if self.warehouse.index.is_server:
            cursor = cursor.allow_disk_use(True).max_time_ms(self.time_limit.get("maxTimeMS"))
        return cursor if self.query.limit is None else cursor.limit(self.query.limit)

    def count(self, extra: Mapping[str, Any] | None = None) -> int:
        """How many entities match, and `extra`, at most the limit."""
        split = self.query.split
        if split is None:
            limit = {} if self.query.limit is None else {"limit": self.query.limit}
            return int(self.collection.count_documents(self.filter(extra), **limit, **self.time_limit))
        if self.query.limit is None and split.field == "_id":
            return sum(
                int(self.collection.count_documents(filter, **self.time_limit)) for filter in self.filters(extra)
            )
        return sum(1 for _ in self.cursor({"_id": 1}, extra))

    def ids(self) -> list[Any]:
        """The ids of the documents, in order."""
        return [doc["_id"] for doc in read_all(self.cursor({"_id": 1}))]

    def distinct(self, field: str) -> list[Any]:
        """The different values of a field; the items, where it holds lists."""
        self.refuse_blobs([field], "distinct")
        with reported(self.query):
            if self.query.limit is None and self.query.split is None:
                return self._distinct(field, self.filter())
            found: list[Any] = []
            for filter in self.within_limit():
                found += self._distinct(field, filter)
            unique: dict[str, Any] = {f"{type(value).__name__} {value!r}": value for value in found}
            return list(unique.values())

    def _distinct(self, field: str, filter: Mapping[str, Any]) -> list[Any]:
        return retry_while_unavailable(
            lambda: list(self.collection.distinct(field, filter, **self.time_limit)), reads=True
        )

    def modify(self, change: Callable[[dict[str, Any], Any], int]) -> int:
        """Change the selected documents, each of them once, whatever the server does meanwhile.

        Args:
            change: Called with a filter of some of them, at most 10,000, and the session of a transaction. It may be
                called again for the same ones. On mongomock it is called with None for the session.

        Returns:
            The sum of what `change` returned.
        """
        index = self.warehouse.index
        with reported(self.query):
            if not index.is_server and self.query.limit is None and self.query.split is None:
                return change(self.filter(), None)
            return sum(index.transaction(functools.partial(change, filter)) for filter in self._chunks())

    def to_delete(self, projection: Mapping[str, Any], size: int) -> Iterator[Sequence[Any]]:
        """The documents, in lists of at most `size`, for one who deletes each list before the next.

        If the server ends the cursor, the documents that are left are read again.
        """
        if self.query.limit is not None:
            yield from chunks(read_all(self.cursor(projection)), size)
            return
        for filter in self.filters():
            yield from self._to_delete(filter, projection, size)

    def _to_delete(
        self, filter: Mapping[str, Any], projection: Mapping[str, Any], size: int
    ) -> Iterator[Sequence[Any]]:
        with contextlib.ExitStack() as open_:
            cursors: list[Any] = []

            def read() -> list[Any]:
                if not cursors:
                    cursors.append(self.collection.find(filter, projection, batch_size=size))
                    open_.callback(cursors[0].close)
                try:
                    return list(itertools.islice(cursors[0], size))
                except PyMongoError:
                    cursors.clear()
                    raise

            while some := retry_while_unavailable(read, reads=True):
                yield some

    def within_limit(self) -> Iterable[dict[str, Any]]:
        """The filters to send, one after the other, to match no more than the limit."""
        return self.filters() if self.query.limit is None else self._chunks()

    def _chunks(self) -> Iterator[dict[str, Any]]:
        return (self.of_ids(some) for some in chunks(self.ids(), _IDS))

    def projection(self) -> dict[str, Any] | None:
        fields, collection = self.query.fields, self.query.collection
        if fields is None:
            return None
        blobs = [f"_tdb.b.{name}" for name in fields] if collection == "data" else []
        return dict.fromkeys((*_ALWAYS.get(collection, ("tags", "_tdb")), *fields, *blobs), 1)


@contextlib.contextmanager
def reported(query: Query) -> Iterator[None]:
    """Turn errors of the driver within this block into errors of this library."""
    try:
        yield
    except ConnectionFailure as error:
        raise ConnectError(f"the database went away during {query.brief}: {first_line(error)}") from error
    except OperationFailure as error:
        if error.has_error_label("TransientTransactionError") or error.code in _LEFT_AS_THEY_ARE:
            raise
        if error.code == TIME_IS_UP:
            raise TimeLimitError(f"the time for {query.brief} was over: {first_line(error)}") from error
        missing = _NEEDS_AN_INDEX if error.code in NO_INDEX else ""
        raise QueryError(f"the server refused {query.brief}: {first_line(error)}{missing}") from error
    except PyMongoError:
        raise
    except NotImplementedError as error:
        if isinstance(error, UnsupportedError):
            raise
        raise UnsupportedError(f"mongomock cannot do this: {error}; use a real server") from error


_LEFT_AS_THEY_ARE = {UNAUTHORIZED, AUTHENTICATION_FAILED, *INTERRUPTED}
_NEEDS_AN_INDEX = (
    "; the index of $text or $near is not there, or was dropped meanwhile: create it on the server, and go on; a stream"
    " goes on from its state"
)
