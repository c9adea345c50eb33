"""Selection: a query bound to a warehouse. Nothing is read until it is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError

from tensordb_data.errors import ConnectError, NotFoundError, QueryError, UnsupportedError
from tensordb_data.query import Query, check_name
from tensordb_data.records.base import Record

if TYPE_CHECKING:
    from tensordb_data.records.base import Collection
    from tensordb_data.stream import Stream
    from tensordb_data.stream.spec import End, Ragged, Shuffle
    from tensordb_data.warehouse import TensorDB
    from tensordb_data.watch import Watch

R = TypeVar("R", bound=Record)

_CHUNK = 256
_IDS = 10_000


class Selection(Generic[R]):
    """The entities that a query matches, as a promise: iterate it, count it, update it, stream it.

    Made by `db.data.find(...)` and its siblings, and by `db.select(query)`.
    """

    def __init__(self, db: TensorDB, query: Query) -> None:
        self.db = db
        self.query = query

    # Reading

    def __iter__(self) -> Iterator[R]:
        """The entities, from a server cursor: constant memory."""
        from tensordb_data.advice import warn_of_scan

        warn_of_scan(self)
        with reported(self.query), contextlib.closing(self._cursor()) as cursor:
            chunk: list[Mapping[str, Any]] = []
            for doc in cursor:
                chunk.append(doc)
                if len(chunk) == _CHUNK:
                    yield from self._collection._entities(chunk)
                    chunk = []
            if chunk:
                yield from self._collection._entities(chunk)

    def all(self) -> list[R]:
        """Every entity, as a list."""
        return list(self)

    def one(self) -> R:
        """The first entity.

        Raises:
            NotFoundError: Nothing matches.
        """
        found = self.head(1)
        if not found:
            raise NotFoundError(f"nothing matches {self.query.brief} in project {self.db.project!r}")
        return found[0]

    def head(self, n: int = 5) -> list[R]:
        """The first `n` entities, or fewer when there are fewer."""
        query = self.query.replace(limit=n)
        if self.query.limit is not None and self.query.limit < n:
            query = self.query
        return list(Selection[R](self.db, query))

    def count(self) -> int:
        """How many entities match, at most the limit."""
        from tensordb_data.advice import warn_of_scan

        warn_of_scan(self)
        limit = {} if self.query.limit is None else {"limit": self.query.limit}
        with reported(self.query):
            return int(self._mongo.count_documents(self._filter(), **limit))

    def distinct(self, field: str) -> list[Any]:
        """The different values of a field among the matching entities; the items, where it holds lists."""
        check_name(field, "distinct")
        with reported(self.query):
            if self.query.limit is None:
                return list(self._mongo.distinct(field, self._filter()))
            ids = self._ids()
            found: list[Any] = []
            for chunk in _chunks(ids):
                found += self._mongo.distinct(field, self._filter({"_id": {"$in": chunk}}))
            unique: dict[str, Any] = {f"{type(value).__name__} {value!r}": value for value in found}
            return list(unique.values())

    def explain(self) -> dict[str, Any]:
        """How the server answers this query.

        Returns:
            `index` (its name, or None for a scan of the collection), `stage`, `keys_examined`, `docs_examined`,
            `returned`, `milliseconds`, and the server's own plan under `raw`.
        """
        from tensordb_data.advice import explain

        with reported(self.query):
            return explain(self)

    def watch(self) -> Watch[R]:
        """Entities that match, as they appear: inserted, or edited in a field that the filter names.

        Watching begins with this call. The iterator blocks; `close()` ends it, from any thread.

        Raises:
            QueryError: The Selection has a sort or a limit, which mean nothing for what is still to come.
            UnsupportedError: The server has no change streams (mongomock).
        """
        from tensordb_data.watch import Watch

        return Watch(self)

    def stream(
        self,
        batch_size: int,
        fields: Sequence[str] | None = None,
        *,
        shuffle: Shuffle = False,
        replacement: bool = False,
        weights: str | Callable[[Mapping[str, Any]], float] | None = None,
        seed: int = 0,
        passes: int | None = None,
        follow: bool = False,
        transform: Callable[..., Any] | str | None = None,
        workers: int = 0,
        ragged: Ragged = "list",
        max_failures: int | float = 0,
        rank: int | None = None,
        world_size: int | None = None,
        end: End = "short",
    ) -> Stream:
        """An endless stream of batches of these samples; only for `db.data`.

        Args:
            batch_size: Samples a batch.
            fields: Fields in a batch; None for the query's own, or all.
            shuffle: A new order each pass, a function of `seed` and the pass only. Where the samples are larger than
                the cache, by blocks and within windows of them that fit it; `"full"` for a permutation of the whole.
            replacement: Draw each sample of a pass from all samples anew, so that some come twice and some not at all.
            weights: With replacement, the chance of each sample, in proportion to a field or to what a function
                returns for a dict of the sample's index fields.
            seed: For the order, and for the `rng` given to `transform`.
            passes: How many times over the data; None for ever.
            follow: Deliver what exists, in the order of commits, then whatever is committed from now on; a batch that
                does not fill soon is delivered short. For one reader.
            transform: Called for each sample: a callable of the sample, or of the sample and an `rng`, or an
                albumentations pipeline; or the import path of one, `"module:name"`.
            workers: Run the transform in so many processes, where it is Python code for the most part; it must be
                found by its import path. None of its own: in threads, which suits NumPy, OpenCV and PyTorch.
            ragged: What to do with arrays of different shapes: `"list"`, `"error"`, or `"pad"` with zeros, and the
                true shapes as a field `<name>_lengths`.
            max_failures: How many samples that cannot be read, decoded or transformed may be skipped: a number, or a
                rate below 1. Each is logged with its `_id`.
            rank: This process's number among `world_size`; None reads torch.distributed when it is running.
            world_size: How many processes share the stream.
            end: What to do with a tail that does not divide: `"short"`, `"drop"` or `"pad"`.

        Returns:
            A Stream: iterate it for dicts of field to array, shape (batch_size, ...).

        Raises:
            QueryError: The Selection is not one of samples.
        """
        from tensordb_data.stream import open_stream

        if self.query.collection != "data":
            raise QueryError(f"only samples can be streamed: db.data.find(...); this is db.{self.query.collection}")
        return open_stream(
            self, batch_size=batch_size, fields=fields, shuffle=shuffle, replacement=replacement, weights=weights,
            seed=seed, passes=passes, follow=follow, transform=transform, workers=workers,
            ragged=ragged, max_failures=max_failures, rank=rank, world_size=world_size, end=end,
        )  # fmt: skip

    # Writing

    def update(self, update: Mapping[str, Any], *, all: bool = False) -> int:
        """Change the fields of every matching entity.

        Up to 10,000 samples are changed in one transaction: all of them or, after an error, none. Of more, each is
        changed once, and a shuffled stream sees all of the change or nothing of it.

        Args:
            update: MongoDB's update language: `{"$set": {"label": 7}}`, `$unset`, `$inc`, `$mul`, `$min`, `$max`,
                `$push`, `$pull`, `$addToSet`. For samples it is checked against the schema.
            all: Needed when the Selection has neither filter nor limit.

        Returns:
            How many entities were modified.

        Raises:
            QueryError: The update is malformed or touches what is not the user's.
            SchemaError: A value does not fit the dataset's schema.
        """
        self._guard("update", all)
        return self._collection._update(self, update)

    def tag(self, *tags: str) -> int:
        """Add tags to every matching entity; returns how many were modified."""
        return self._collection._write(self, {"$addToSet": {"tags": {"$each": clean_tags(tags)}}})

    def untag(self, *tags: str) -> int:
        """Remove tags from every matching entity; returns how many were modified."""
        return self._collection._write(self, {"$pull": {"tags": {"$in": clean_tags(tags)}}})

    def delete(self, *, all: bool = False) -> int:
        """Delete every matching entity, and no others; returns how many were deleted.

        Args:
            all: Needed when the Selection has neither filter nor limit.
        """
        self._guard("delete", all)
        return self._collection._write(self, None)

    # Combining

    def __and__(self, other: Mapping[str, Any] | Selection[R] | Query) -> Selection[R]:
        """This Selection narrowed by another filter.

        Raises:
            QueryError: One of the two has a limit, so that narrowing would change which entities it means; or
                they are of different collections.
        """
        query = other if isinstance(other, Query) else getattr(other, "query", None)
        if query is None:
            if not isinstance(other, Mapping):
                return NotImplemented
            query = Query(self.query.collection, other)
        if query.collection != self.query.collection:
            raise QueryError(f"a Selection of {self.query.collection} cannot be narrowed by one of {query.collection}")
        if isinstance(other, Selection) and other.db is not self.db and other.db != self.db:
            raise QueryError("the two Selections are of different warehouses or projects")
        if self.query.limit is not None or query.limit is not None:
            raise QueryError("a limited Selection cannot be narrowed: its entities would change; "
                             "narrow first, then limit: find({**filter, ...}, limit=...)")  # fmt: skip
        parts = [part for part in (self.query.filter, query.filter) if part]
        merged = parts[0] if len(parts) == 1 else {"$and": parts} if parts else {}
        if len(parts) == 2 and parts[0] == parts[1]:
            merged = parts[0]
        fields = self.query.fields if query.fields is None else query.fields
        return Selection(self.db, self.query.replace(filter=merged, sort=query.sort or self.query.sort, fields=fields))

    def __repr__(self) -> str:
        return f"<Selection {self.query.brief} of project {self.db.project!r}>"

    # For the rest of the package

    @property
    def _collection(self) -> Collection[R]:
        return self.db._collection(self.query.collection)

    @property
    def _mongo(self) -> Any:
        return self.db._mongo()[self.query.collection]

    def _filter(self, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The filter to send: the project's entities, those of the user's filter, and `extra`."""
        parts = [part for part in (self.query.filter, extra) if part]
        project = {"_tdb.p": self.db.project}
        return {"$and": [project, *parts]} if parts else project

    def _sort(self) -> list[tuple[str, int]]:
        """A total order: equal entities keep one order in every run."""
        if self.query.sort is None:
            return self._collection._order()
        ties = [] if any(name == "_id" for name, _ in self.query.sort) else [("_id", 1)]
        return [*self.query.sort, *ties]

    def _cursor(self, projection: Mapping[str, Any] | None = None) -> Any:
        if projection is None:
            projection = self._collection._projection(self.query.fields)
        cursor = self._mongo.find(self._filter(), projection).sort(self._sort())
        if self.db._full:
            cursor = cursor.allow_disk_use(True)
        return cursor if self.query.limit is None else cursor.limit(self.query.limit)

    def _ids(self) -> list[Any]:
        with contextlib.closing(self._cursor({"_id": 1})) as cursor:
            return [doc["_id"] for doc in cursor]

    def _modify(self, change: Callable[[dict[str, Any]], int]) -> int:
        """Apply `change` to the filter, or with a limit to chunks of exactly the selected ids."""
        with reported(self.query):
            if self.query.limit is None:
                return change(self._filter())
            return sum(change(self._filter({"_id": {"$in": chunk}})) for chunk in _chunks(self._ids()))

    def _guard(self, verb: str, all: bool) -> None:
        if not all and not self.query.filter and self.query.limit is None:
            raise QueryError(f"this would {verb} everything in {self.query.collection} of project "
                             f"{self.db.project!r}; say {verb}(..., all=True) if that is meant")  # fmt: skip


def streamed(source: object, batch_size: int | None, options: Mapping[str, Any]) -> Stream:
    """The stream that a dataset of a framework is made of: the one that it is given, or a new one over a Selection.

    Raises:
        QueryError: It is neither, or a stream with options, of which it has its own.
    """
    from tensordb_data.stream import Mix, Stream

    if isinstance(source, Selection):
        if batch_size is None:
            raise QueryError("a Selection needs a `batch_size` here: query_dataset(sel, batch_size=256)")
        return source.stream(batch_size=batch_size, **options)
    if not isinstance(source, (Stream, Mix)):
        hint = "; db.select(query) makes a Selection of it" if isinstance(source, Query) else ""
        raise QueryError(
            f"a Selection, db.data.find(...), or a stream is needed here; found a {type(source).__name__}{hint}"
        )
    given = [*([] if batch_size is None else ["batch_size"]), *options]
    if given:
        raise QueryError(f"a stream has its own options: give {', '.join(given)} to `Selection.stream`")
    return cast("Stream", source)


def clean_tags(tags: Sequence[object]) -> list[str]:
    """The tags without repetitions.

    Raises:
        QueryError: There is none, or one is not a non-empty string.
    """
    if not tags:
        raise QueryError("at least one tag is needed")
    for tag in tags:
        if not isinstance(tag, str) or not tag:
            raise QueryError(f"a tag is a non-empty string; found {tag!r}")
        if "\0" in tag or tag != tag.encode(errors="replace").decode():
            raise QueryError(f"the tag {tag!r} is not valid text")
    return list(dict.fromkeys(str(tag) for tag in tags))


@contextlib.contextmanager
def reported(query: Query) -> Iterator[None]:
    """The driver's errors as ours."""
    try:
        yield
    except ConnectionFailure as error:
        raise ConnectError(f"the database went away during {query.brief}: {_line(error)}") from error
    except OperationFailure as error:
        if error.has_error_label("TransientTransactionError") or error.code in (13, 18, 43, 237, 11600, 11602):
            raise
        missing = _NEEDS_AN_INDEX if error.code in _WITHOUT_INDEX else ""
        raise QueryError(f"the server refused {query.brief}: {_line(error)}{missing}") from error
    except PyMongoError:
        raise
    except NotImplementedError as error:
        if isinstance(error, UnsupportedError):
            raise
        raise UnsupportedError(f"mongomock cannot do this: {error}; use a real server") from error


_WITHOUT_INDEX = (27, 291)
_NEEDS_AN_INDEX = (
    "; the index of $text or $near is not there, or was dropped meanwhile: create it on the server, and go on; a stream"
    " goes on from its state"
)


def _line(error: Exception) -> str:
    return str(error).split(", full error", 1)[0].split(", Timeout:", 1)[0]


def _chunks(ids: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(ids), _IDS):
        yield ids[start : start + _IDS]
