"""Reading the index: pages of sample documents in the order of the query, re-opened by position when a cursor dies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, cast

from bson import decode_all
from pymongo.client_session import ClientSession
from pymongo.cursor import Cursor
from pymongo.errors import AutoReconnect, CursorNotFound, OperationFailure

from tensordb_data.mongo.errors import CURSOR_LOST
from tensordb_data.stream.plan.bson_columns import block_from_raw
from tensordb_data.stream.plan.sample_table import Block, Layouts, block_from_docs
from tensordb_data.stream.state import After, Versions
from tensordb_data.warehouse.bound_query import BoundQuery, reported
from tensordb_data.warehouse.query_plan import narrowing_index

_ATTEMPTS = 5
_BAD_VALUE = 2


def bounded(versions: Versions) -> dict[str, Any]:
    """A filter for the samples committed up to `versions`."""
    each = [{"dataset": name, "_tdb.s": {"$lte": sequence}} for name, (sequence, _) in sorted(versions.items())]
    if not each:
        return {"dataset": {"$in": []}}
    return each[0] if len(each) == 1 else {"$or": each}


class Pages:
    """The documents of a selection at `versions`, from behind `after`, in pages of about `rows`; the `first`, which
    somebody waits for, may be smaller.

    Iterating gives (documents, is last) pages of at most `rows` documents, none of them empty; `blocks` the same as
    columns, with as many rows as the server puts into a reply.

    In the default order, by dataset and sequence, a cursor that the server dropped (idle limits, restart, failover)
    is re-opened behind the last document read. With another sort the position is no key: reading starts anew, and
    skips what was read.

    With the session of a snapshot all of it is of one moment, also when it is re-opened. Without one, each document
    is as it is when its page is read.
    """

    def __init__(
        self,
        selection: BoundQuery,
        layouts: Layouts,
        versions: Versions,
        rows: int,
        after: After | None = None,
        limit: int | None = None,
        first: int | None = None,
        session: ClientSession | None = None,
    ) -> None:
        self._selection, self._layouts, self._versions, self._rows = selection, layouts, versions, rows
        self._first = None if selection.query.sort else first
        self._after, self._limit, self._read = after, limit, 0
        self._session = session
        self._cursor: Cursor[dict[str, Any]] | None = None
        self._ahead: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[tuple[list[dict[str, Any]], bool]]:
        try:
            while page := self._page():
                self._ahead = next(iter(self._take(1)), None)
                yield page, self._ahead is None
                if self._first is not None:  # larger replies from here on
                    self._first = None
                    self.close()
        finally:
            self.close()

    def blocks(self) -> Iterator[Block]:
        """All that is left, as columns without the bytes of inline blobs; the fast way for all of it."""
        if not self._selection.warehouse.index.is_server:
            yield from (block_from_docs(self._layouts, docs) for docs, _ in self)
            return
        failures = 0
        with reported(self._selection.query):
            while True:
                try:
                    for reply in self._open(raw=True):
                        if reply:
                            yield self._block(reply)
                            failures = 0
                    return
                except (CursorNotFound, AutoReconnect, OperationFailure) as error:
                    failures += 1
                    if failures >= _ATTEMPTS or not _lost_cursor(error):
                        raise

    def _block(self, reply: bytes) -> Block:
        found = block_from_raw(self._layouts, reply)
        if found is None:
            docs = decode_all(reply)
            found = block_from_docs(self._layouts, docs), (docs[-1]["dataset"], docs[-1]["_tdb"]["s"])
        block, self._after = found
        self._read += len(block)
        return block

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
        with reported(self._selection.query):
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
        """The order of the query. Within one dataset by sequence alone, so that the server can merge what an index on
        other fields has in that order; with the dataset in the sort it would scan the whole dataset.
        """
        alone = not self._selection.query.sort and len(self._versions) == 1
        return [("_tdb.s", 1)] if alone else self._selection.sort()

    def _index(self, filter_: Mapping[str, Any]) -> str | None:
        """The index to read all that is left through, where the server would not choose it."""
        if self._selection.query.sort or len(self._versions) != 1:
            return None
        ((sequence, _),) = self._versions.values()
        return narrowing_index(self._selection, filter_, sequence - (self._after[1] if self._after else 0))

    def _open(self, raw: bool = False) -> Cursor[Any]:
        query = self._selection.query
        extra: list[dict[str, Any]] = [bounded(self._versions)]
        if not query.sort and self._after is not None:
            dataset, sequence = self._after
            later = {"_tdb.s": {"$gt": sequence}}
            behind: dict[str, Any] = {"$or": [{"dataset": dataset, **later}, {"dataset": {"$gt": dataset}}]}
            extra.append(later if len(self._versions) == 1 else behind)
        filter_ = self._selection.filter({"$and": extra})
        collection = self._selection.warehouse.index["data"]
        find = collection.find_raw_batches if raw else collection.find
        found = find(
            filter_,
            self._layouts.projection(inline=not raw),
            batch_size=self._first + 1 if self._first is not None else max(self._rows, 1000),
            session=self._session,
        )
        if self._first is None and self._limit is None and (index := self._index(filter_)) is not None:
            found = found.hint(index)
        found = found.sort(self._order)
        if self._selection.warehouse.index.is_server:
            found = found.allow_disk_use(True)
        if query.sort and self._read:
            found = found.skip(self._read)
        if self._limit is not None:
            found = found.limit(self._limit - self._read)
        return cast(Cursor[Any], found)


def _lost_cursor(error: Exception) -> bool:
    if getattr(error, "code", None) == _BAD_VALUE:
        return "hint" in str(error)  # the index that was to be read through has just been dropped
    return isinstance(error, (CursorNotFound, AutoReconnect)) or getattr(error, "code", None) in CURSOR_LOST
