"""IndexReader: reads pages of sample documents, in the order of the query. It reopens a cursor that was dropped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, cast

from bson import decode_all
from pymongo.client_session import ClientSession
from pymongo.cursor import Cursor
from pymongo.errors import AutoReconnect, CursorNotFound, OperationFailure

from tensordb_data.common.bson_values import LENIENT
from tensordb_data.mongo.errors import is_cursor_lost
from tensordb_data.query.merged_cursor import MergedCursor
from tensordb_data.stream.plan.bson_columns import table_from_bson
from tensordb_data.stream.plan.sample_table import FieldLayout, SampleTable, table_from_docs
from tensordb_data.stream.state import After, Versions
from tensordb_data.warehouse.bound_query import BoundQuery, reported
from tensordb_data.warehouse.query_plan import narrowing_index

_ATTEMPTS = 5
_BAD_VALUE = 2


def bounded(versions: Versions, since: Versions | None = None) -> dict[str, Any]:
    """A filter for the samples committed up to `versions`, and after those of `since`."""
    each = []
    for name, (sequence, _) in sorted(versions.items()):
        later = {} if since is None else {"$gt": since[name][0]}
        each.append({"dataset": name, "_tdb.s": {"$lte": sequence, **later}})
    if not each:
        return {"dataset": {"$in": []}}
    return each[0] if len(each) == 1 else {"$or": each}


class IndexReader:
    """Reads the documents that match a query.

    Iteration yields pages: (documents, whether it is the last page). No page is empty. `tables` yields the same
    documents as tables, each of one server reply.

    If the server drops the cursor (idle limits, restart, failover), it is opened again after the last document. This
    needs the default order, by dataset and sequence. With another sort, reading begins again and skips what was read.

    With the session of a snapshot, all documents are of one moment, even after the cursor was opened again. Without a
    session, each document is as it is when its page is read.

    Args:
        bound_query: The query.
        layout: The fields.
        versions: Only samples up to these versions are read.
        rows: The number of documents in a page, at most.
        after: Begin after this sample.
        limit: Read at most so many documents.
        first: The size of the first page. It can be small, because somebody waits for it.
        session: The session of a snapshot.
        since: Only samples that were committed after these versions are read.
        among: A further filter, and the index by which it is read, of one dataset.
    """

    def __init__(
        self,
        bound_query: BoundQuery,
        layout: FieldLayout,
        versions: Versions,
        rows: int,
        after: After | None = None,
        limit: int | None = None,
        first: int | None = None,
        session: ClientSession | None = None,
        since: Versions | None = None,
        among: tuple[Mapping[str, Any], str] | None = None,
    ) -> None:
        self._since, self._among = since, among
        self._bound_query, self._layout, self._versions, self._rows = bound_query, layout, versions, rows
        self._first = None if bound_query.query.sort else first
        self._after, self._limit, self._read = after, limit, 0
        self._session = session
        self._cursor: Cursor[dict[str, Any]] | MergedCursor | None = None
        self._ahead: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[tuple[list[dict[str, Any]], bool]]:
        try:
            while page := self._page():
                self._ahead = next(iter(self._take(1)), None)
                yield page, self._ahead is None
                if self._first is not None:  # from now on, the server may send larger replies
                    self._first = None
                    self.close()
        finally:
            self.close()

    def tables(self) -> Iterator[SampleTable]:
        """Yield all the rest as tables, without the bytes of inline blobs. This is the fast way to read everything."""
        if not self._bound_query.warehouse.index.is_server or self._bound_query.query.split is not None:
            yield from (table_from_docs(self._layout, docs) for docs, _ in self)
            return
        failures = 0
        with reported(self._bound_query.query):
            while True:
                try:
                    for reply in cast(Iterator[bytes], self._open(raw=True)):
                        if reply:
                            yield from self._tables(reply)
                            failures = 0
                    return
                except (CursorNotFound, AutoReconnect, OperationFailure) as error:
                    failures += 1
                    if failures >= _ATTEMPTS or not _lost_cursor(error):
                        raise

    def _tables(self, reply: bytes) -> Iterator[SampleTable]:
        """The samples of a reply of the server, all of which are yielded before the next one is read."""
        yield self._table(reply)

    def _table(self, reply: bytes) -> SampleTable:
        found = table_from_bson(self._layout, reply)
        if found is None:
            docs = decode_all(reply, LENIENT)
            found = table_from_docs(self._layout, docs), (docs[-1]["dataset"], docs[-1]["_tdb"]["s"])
        table, self._after = found
        self._read += len(table)
        return table

    def close(self) -> None:
        """Release the server's cursor."""
        if self._cursor is not None:
            self._cursor.close()
            self._cursor = None

    def _page(self) -> list[dict[str, Any]]:
        if self._ahead is None:
            return self._take(self._first or self._rows)
        return [self._ahead, *self._take(self._rows - 1)]

    def _take(self, count: int) -> list[dict[str, Any]]:
        with reported(self._bound_query.query):
            return self._read_on(count)

    def _read_on(self, count: int) -> list[dict[str, Any]]:
        taken: list[dict[str, Any]] = []
        failures = 0
        while True:
            try:
                if self._cursor is None:
                    self._cursor = self._open()
                for doc in islice(self._cursor, count - len(taken)):
                    taken.append(doc)
                    self._after = (doc["dataset"], doc["_tdb"]["s"])
                    self._read += 1
                    failures = 0
                return taken
            except (CursorNotFound, AutoReconnect, OperationFailure) as error:
                failures += 1
                if failures >= _ATTEMPTS or not _lost_cursor(error):
                    raise
                self._cursor = None

    @property
    def _order(self) -> list[tuple[str, int]]:
        """The order of the query.

        For one dataset it is the sequence alone. Then the server can use an index on other fields that has this order.
        If the sort had the dataset too, the server would scan the whole dataset.
        """
        alone = not self._bound_query.query.sort and len(self._versions) == 1
        return [("_tdb.s", 1)] if alone else self._bound_query.sort()

    def _index(self, filter_: Mapping[str, Any]) -> str | None:
        """The index by which the rest should be read, if the server would not choose it."""
        if self._among is not None:
            return self._among[1]
        if self._bound_query.query.sort or self._bound_query.query.split is not None or len(self._versions) != 1:
            return None
        ((name, (sequence, _)),) = self._versions.items()
        begins = self._after[1] if self._after else 0 if self._since is None else self._since[name][0]
        return narrowing_index(self._bound_query, filter_, sequence - begins)

    def _open(self, raw: bool = False) -> Cursor[Any] | MergedCursor:
        query = self._bound_query.query
        extra: list[Mapping[str, Any]] = [bounded(self._versions, self._since)]
        if self._among is not None:
            extra.append(self._among[0])
        if not query.sort and self._after is not None:
            dataset, sequence = self._after
            later = {"_tdb.s": {"$gt": sequence}}
            behind: dict[str, Any] = {"$or": [{"dataset": dataset, **later}, {"dataset": {"$gt": dataset}}]}
            extra.append(later if len(self._versions) == 1 else behind)
        filters = self._bound_query.filters({"$and": extra})
        if len(filters) == 1:
            return self._find(filters[0], raw)
        limit = None if self._limit is None else self._limit - self._read
        return MergedCursor(lambda: [self._find(filter_, raw=False) for filter_ in filters], self._order, limit)

    def _find(self, filter_: Mapping[str, Any], raw: bool) -> Cursor[Any]:
        query = self._bound_query.query
        collection = self._bound_query.warehouse.index["data"]
        find = collection.find_raw_batches if raw else collection.find
        found = find(
            filter_,
            self._layout.projection(inline=not raw),
            batch_size=self._first + 1 if self._first is not None else max(self._rows, 1000),
            session=self._session,
        )
        if self._first is None and self._limit is None and (index := self._index(filter_)) is not None:
            found = found.hint(index)
        found = found.sort(self._order)
        if self._bound_query.warehouse.index.is_server:
            found = found.allow_disk_use(True)
        if query.sort and self._read:
            found = found.skip(self._read)
        if self._limit is not None:
            found = found.limit(self._limit - self._read)
        return cast(Cursor[Any], found)


def _lost_cursor(error: Exception) -> bool:
    if getattr(error, "code", None) == _BAD_VALUE:
        return "hint" in str(error)  # the index of the hint has just been dropped
    return is_cursor_lost(error)
