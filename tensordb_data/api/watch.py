"""Watch: entities of a Selection as they appear."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Generic, TypeVar

from bson import Timestamp
from pymongo.errors import PyMongoError

from tensordb_data.errors import ConnectError, QueryError, UnsupportedError
from tensordb_data.mongo.errors import is_history_lost, is_transient
from tensordb_data.query.query import names
from tensordb_data.warehouse.bound_query import BoundQuery, reported
from tensordb_data.warehouse.record import Record

R = TypeVar("R", bound=Record)

_AWAIT_MS = 500  # how long the server waits for news, and so at most how long close() takes
_BATCH = 1000
_ATTEMPTS = 30


class Watch(Iterator[R], Generic[R]):
    """An iterator of the entities that match a Selection, as they are inserted, or edited in a field of its filter.

    A change stream wakes the iterator up. Then the filter of the Selection finds the entities, so a filter may use all
    of MongoDB's query language. The watch begins when it is made, and survives a restart of the server. `close()` ends
    it, from any thread.
    """

    def __init__(self, selection: BoundQuery, entities: Callable[[list[Mapping[str, Any]]], list[R]]) -> None:
        query = selection.query
        if query.limit is not None or query.sort is not None:
            raise QueryError(
                "watch takes a Selection without sort and limit: entities come in the order in which they appear"
            )
        if not selection.warehouse.index.is_server:
            raise UnsupportedError("mongomock has no change streams; watch needs a real server")
        selection.filter()  # refuses one that would be sent in several parts
        self._selection, self._entities = selection, entities
        self._fields = names(query.filter)
        self._found: deque[R] = deque()
        self._closed = threading.Event()
        self._token: Any = None
        now = selection.warehouse.index.database.command("ping")["operationTime"]
        self._begin = Timestamp(now.time, now.inc + 1)
        self._stream: Any = self._opened()

    def __iter__(self) -> Iterator[R]:
        return self

    def __next__(self) -> R:
        """Waits for the next entity.

        Raises:
            ConnectError: The server went away and did not come back, or its oplog does not reach back to the position
                of this watch.
        """
        if not self.wait():
            raise StopIteration
        return self._found.popleft()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits until there is an entity, the watch is closed, or about so many seconds have passed.

        Returns:
            Whether there is an entity. Then `next` does not wait.

        Raises:
            ConnectError: As with `next`.
        """
        until = None if seconds is None else time.monotonic() + seconds
        failures = 0
        while not self._found:
            if self._closed.is_set():
                self._release()
                return False
            if until is not None and time.monotonic() >= until:
                return False
            try:
                stream = self._stream  # `close` of another thread forgets it
                if stream is None:
                    stream = self._stream = self._opened()
                ids = self._changed(stream)
                if ids:
                    self._found.extend(self._matching(ids))
                self._token = stream.resume_token
                failures = 0
            except StopIteration:  # it was closed
                continue
            except PyMongoError as error:
                if self._closed.is_set():
                    continue
                failures += 1
                self._recover(error, failures)
        return True

    def skip(self) -> None:
        """Drops the entities that were found already, for a caller that reads all entities after one wake-up."""
        self._found.clear()

    def close(self) -> None:
        """End the iteration and release the server's cursor."""
        self._closed.set()
        self._found.clear()
        self._release()

    def __enter__(self) -> Watch[R]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_stream"):
            self._release()

    def _opened(self) -> Any:
        project = self._selection.warehouse.project
        news = {"$or": [
            {"operationType": {"$in": ["insert", "replace"]}, "fullDocument._tdb.p": project},
            {"operationType": "update"},
            {"operationType": {"$in": ["drop", "rename", "dropDatabase", "invalidate"]}},
        ]}  # fmt: skip
        short = {"$project": {"operationType": 1, "documentKey": 1, "updateDescription": 1}}
        # A stream that is lost before it has told its position is opened again at the beginning of the watch.
        position = {"start_at_operation_time": self._begin} if self._token is None else {"resume_after": self._token}
        return self._selection.collection.watch(
            [{"$match": news}, short], max_await_time_ms=_AWAIT_MS, batch_size=_BATCH, **position
        )

    def _changed(self, stream: Any) -> list[Any]:
        """The ids in the news, in order; empty when there is none yet."""
        ids: dict[Any, None] = {}
        event = stream.try_next()
        while event is not None:
            if event["operationType"] in ("drop", "rename", "dropDatabase", "invalidate"):
                raise ConnectError("the collection that is watched was dropped")
            if self._concerns(event):
                ids[event["documentKey"]["_id"]] = None
            if len(ids) >= _BATCH or not _has_more(stream):
                break
            event = stream.try_next()
        return list(ids)

    def _concerns(self, event: Mapping[str, Any]) -> bool:
        if event["operationType"] != "update" or self._fields is None:
            return True
        edit = event.get("updateDescription", {})
        paths = [*edit.get("updatedFields", {}), *edit.get("removedFields", ())]
        paths += [part["field"] for part in edit.get("truncatedArrays", ())]
        return any(path.split(".")[0] in self._fields for path in paths)

    def _matching(self, ids: list[Any]) -> list[R]:
        with reported(self._selection.query):
            found = self._entities(list(self._selection.narrowed({"_id": {"$in": ids}}).cursor()))
        place = {id: i for i, id in enumerate(ids)}
        return sorted(found, key=lambda entity: place[entity.id])

    def _recover(self, error: PyMongoError, failures: int) -> None:
        """Prepare to open the stream again at its position, or raise an error."""
        if is_history_lost(error):
            raise ConnectError("watch fell so far behind that the server forgot where it was; make a new one, and "
                               "look for what came meanwhile with find") from error  # fmt: skip
        if failures > _ATTEMPTS or not (is_transient(error) or error.has_error_label("ResumableChangeStreamError")):
            raise ConnectError(f"watch lost the server: {error}") from error
        self._release()
        self._closed.wait(min(2.0, 0.05 * 2**failures))

    def _release(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                stream.close()
            except PyMongoError:
                return


def _has_more(stream: Any) -> bool:
    """Whether another event is here already, so that asking for it does not wait."""
    cursor = getattr(stream, "_cursor", None)
    return bool(getattr(cursor, "_data", ()))
