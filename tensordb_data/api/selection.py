"""Selection: a query bound to a warehouse. It is lazy: nothing is read until it is asked for."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from tensordb_data.api.data.samples_out import SamplesOut
from tensordb_data.api.data.selection_table import SelectionTable
from tensordb_data.api.protocol import Facade, Verbs
from tensordb_data.api.watch import Watch
from tensordb_data.common.chunks import batched
from tensordb_data.common.options import suggesting
from tensordb_data.errors import NotFoundError, QueryError, TimeLimitError
from tensordb_data.frozen.bound_query import bind
from tensordb_data.query.query import Query, check_name
from tensordb_data.query.tags import clean_tags
from tensordb_data.schema import BlobField
from tensordb_data.schema.views.view import View, views_of
from tensordb_data.stream.deliver.map_dataset import MapDataset
from tensordb_data.stream.deliver.stream import Stream
from tensordb_data.stream.mixture.mixture import Mix
from tensordb_data.stream.options import BatchOptions, StreamOptions, shard_of, tokens_of, units_of
from tensordb_data.stream.spec import Ragged, Shuffle, StreamSpec, Weights, field_names
from tensordb_data.table.bounded import count_within, positive
from tensordb_data.time.freeze import freeze
from tensordb_data.warehouse.bound_query import BoundQuery, reported
from tensordb_data.warehouse.query_plan import explain, warn_of_scan
from tensordb_data.warehouse.record import Record

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

R = TypeVar("R", bound=Record)

_CHUNK = 256


class Selection(SamplesOut, SelectionTable[R], Generic[R]):
    """The entities that a query matches. It is lazy: it reads nothing until you iterate, count, update or stream it.

    `db.data.find(...)`, the `find` of the other collections and `db.select(query)` make Selections.
    """

    def __init__(self, db: Facade, query: Query) -> None:
        self.db = db
        self.query = query
        self._seconds: float | None = None

    # Reading

    def __iter__(self) -> Iterator[R]:
        """Iterate over the entities, from a server cursor, in constant memory."""
        selection = self.bound
        warn_of_scan(selection)
        done = 0
        try:
            with reported(self.query), contextlib.closing(selection.cursor()) as cursor:
                for docs in batched(cursor, _CHUNK):
                    yield from self._verbs.entities(docs)
                    done += len(docs)
        except TimeLimitError as error:
            error.done = done
            raise

    def all(self) -> list[R]:
        """Every entity, as a list."""
        return list(self)

    def first(self) -> R:
        """The first entity, in the order of the Selection. Whether others match too makes no difference.

        Raises:
            NotFoundError: Nothing matches.
        """
        found = self.head(1)
        if not found:
            raise NotFoundError(f"nothing matches {self.query.brief} in project {self.db.project!r}")
        return found[0]

    def one(self) -> R:
        """The same as `first()`."""
        return self.first()

    def head(self, n: int = 5) -> list[R]:
        """The first `n` entities, or fewer when there are fewer."""
        query = self.query.replace(limit=n)
        if self.query.limit is not None and self.query.limit < n:
            query = self.query
        return list(self._replaced(query))

    def within(self, seconds: float) -> Self:
        """The same Selection, whose reads may take the server at most so many seconds each: `sel.within(2).all()`.

        Streams, and what changes entities, are not limited.

        Raises:
            QueryError: `seconds` is no number above 0.
            TimeLimitError: Not here: a read of it took longer.
        """
        found = copy.copy(self)
        found._seconds = positive(seconds, "within: seconds")
        return found

    def count(self, *, at_most: int | None = None, seconds: float | None = None) -> int:
        """How many entities match, at most the limit.

        Args:
            at_most: Count no further. If there are more, the result is an `AtLeast`, an int that is so many.
            seconds: Count no longer. If that is not enough, the result is an `AtLeast` of what was counted until then.
        """
        selection = self.bound
        if at_most is not None or seconds is not None:
            return count_within(selection, at_most, seconds)
        warn_of_scan(selection)
        with reported(self.query):
            return selection.count()

    def distinct(self, field: str) -> list[Any]:
        """The different values of a field among the matching entities. Where the field holds lists, their items."""
        check_name(field, "distinct")
        return self.bound.distinct(field)

    def explain(self) -> dict[str, Any]:
        """How the server answers this query.

        Returns:
            `index` (its name, or None for a scan of the collection), `stage`, `keys_examined`, `docs_examined`,
            `returned`, `milliseconds`, and the server's own plan under `raw`.
        """
        with reported(self.query):
            return explain(self.bound)

    def watch(self) -> Watch[R]:
        """Iterate over matching entities as they appear: as they are inserted, or edited in a field of the filter.

        Watching begins with this call. The iterator waits for the next entity. `close()` ends it, from any thread.

        Raises:
            QueryError: The Selection has a sort or a limit, which mean nothing for entities that do not exist yet.
            UnsupportedError: The server has no change streams (mongomock).
        """
        return Watch(self.bound, self._verbs.entities)

    @suggesting(BatchOptions)
    def stream(
        self,
        batch_size: int | None = None,
        fields: Sequence[str] | None = None,
        *,
        shuffle: Shuffle = False,
        replacement: bool | None = None,
        weights: Weights | None = None,
        seed: int = 0,
        passes: int | None = None,
        follow: bool = False,
        transform: Callable[..., Any] | str | None = None,
        workers: int = 0,
        ragged: Ragged = "list",
        max_failures: int | float = 0,
        **batches: Unpack[BatchOptions],
    ) -> Stream:
        """An endless stream of batches of these samples; only for `db.data`.

        Args:
            batch_size: Samples a batch; with `pack=`, rows a batch. It is needed, unless there is `batch_tokens=`.
            fields: Fields in a batch; None for the query's own, or all.
            shuffle: True for a new order in each pass, which depends on `seed` and the pass only. If the samples are
                larger than the cache, blocks of samples are shuffled, and samples within windows of blocks that fit
                the cache. `"full"` for a permutation of all samples in any case.
            replacement: Draw every sample at random from all samples, so that one may come twice in a pass and another
                not at all. None for True if there are `weights`.
            weights: How likely each sample is to be drawn: the name of a field; a function that takes a dict of the
                sample's index fields and returns a number; or `Feedback("cnn-1", "loss")`, what a run has told of it,
                as it is when a pass begins.
            seed: For the order, and for the `rng` that `transform` gets.
            passes: How many passes (epochs over the selection) to deliver; None for no end.
            follow: Deliver the samples that exist, in the order of commits, and then those that are committed later.
                A batch that does not fill soon is delivered short. For one reader.
            transform: Called for each sample: a callable that takes the sample, or the sample and an `rng`; or a
                transform of torchvision v2, Kornia, MONAI or albumentations; or the import path of one of these,
                `"module:name"`.
            workers: Run the transform in this many processes. Use them for a transform that is mostly Python code;
                its import path must be known. With 0 it runs in threads, which suits NumPy, OpenCV and PyTorch.
            ragged: What to do with arrays of different shapes in a batch: `"list"`, `"error"`, or `"pad"`. `"pad"`
                pads with zeros and adds the true shapes as the field `<name>_lengths`.
            max_failures: How many samples that cannot be read, decoded or transformed may be skipped: a number, or a
                rate below 1. Each skipped sample is logged with its `_id`.
            batches: Which part of the stream this process delivers: `shard=Shard(rank=, world_size=, tail=)`, or the
                same by `rank=`, `world_size=` and `end=`. Without, ranks are read from torch.distributed or
                jax.distributed, when an iteration begins. The tail of a pass, which does not fill a batch on every
                rank, is `"short"` batches, or `"drop"` leaves it out, or `"pad"` fills it up with samples from the
                start of the pass.

                And how batches are made of sequences, by their lengths: `tokens=Tokens(n=, length=, long=, window=)`,
                short `batch_tokens=32_768, length="n_tokens"`, puts samples of like length together, at most so many
                tokens a batch, padding included. `tokens=Tokens(pack=4096, ...)`, short `pack=4096`, packs them into
                rows of 4,096, and adds `<name>_segments`, `<name>_positions` and `cu_seqlens`. See `Tokens`.

                And how fields are decoded, if not as their kinds say: `decode={"image": False}` gives the bytes as
                they are stored, `Scaled(224)` a smaller JPEG, `Window(seconds=2)` a part of a sound, `Clip(frames=16)`
                frames of a video, and `Image("gray")` or another kind what this kind gives.

        Returns:
            A Stream. Iterating it gives batches: dicts of field to array, of shape (batch_size, ...).

        Raises:
            QueryError: The Selection is not a selection of samples, or an option is outside its range or contradicts
                another one, or the transform would see none of the fields.
            TypeError: There is no such option; the message names the nearest one.
        """
        if self.query.collection != "data":
            raise QueryError(f"only samples can be streamed: db.data.find(...); this is db.{self.query.collection}")
        replacement = weights is not None if replacement is None else replacement
        shard, tokens = shard_of(batches), tokens_of(batches)
        names = field_names(fields if fields is not None else self.query.fields)
        spec = StreamSpec(
            self.query, units_of(batch_size, tokens), names, shuffle=shuffle, replacement=replacement, weights=weights,
            seed=seed, passes=passes, follow=follow, transform=transform, workers=workers, ragged=ragged,
            max_failures=max_failures, decode=views_of(batches.get("decode")), tokens=tokens, rank=shard.rank or 0,
            world_size=shard.world_size or 1, end=shard.tail,
        )  # fmt: skip
        stream = Stream(self.db.warehouse, spec, shard)
        stream.check_transform()
        return stream

    def dataset(
        self,
        fields: Sequence[str] | None = None,
        *,
        transform: Callable[..., Any] | str | None = None,
        decode: Mapping[str, bool | View | BlobField] | None = None,
    ) -> MapDataset:
        """The samples by their number, for samplers and splits of other libraries: `len(ds)`, `ds[3]`, `ds[[1, 5]]`.

        A stream is faster, and resumes. `tensordb_data.torch.MapDataset` is the same with tensors.

        Args:
            fields: The fields to deliver; None for those of the query, or else for every required one.
            transform: Called for each sample; see `stream`.
            decode: How fields are decoded, if not as their kinds say; see `stream`.

        Raises:
            NotFoundError: The query names no dataset that exists.
            QueryError: The Selection is not a selection of samples; there is no such field; a field cannot be decoded
                so; or the transform would see none of the fields.
        """
        if self.query.collection != "data":
            raise QueryError(f"only samples are a dataset: db.data.find(...); this is db.{self.query.collection}")
        names = field_names(fields if fields is not None else self.query.fields)
        spec = StreamSpec(self.query, 1, names, transform=transform, decode=views_of(decode))
        return MapDataset(self.db.warehouse, spec)

    # Writing

    def update(self, update: Mapping[str, Any], *, all: bool = False) -> int:
        """Change the fields of every matching entity.

        Up to 10,000 entities are changed in one transaction: all of them or, after an error, none. Of more, each is
        changed once, also if the server goes away meanwhile. A shuffled stream sees all of a change of samples, or
        nothing of it.

        Args:
            update: MongoDB's update language: `{"$set": {"label": 7}}`, `$unset`, `$inc`, `$mul`, `$min`, `$max`,
                `$push`, `$pull`, `$addToSet`. An update of samples is checked against the schema.
            all: Needed when the Selection has neither filter nor limit.

        Returns:
            How many entities were modified.

        Raises:
            QueryError: The update is malformed, or changes a field that is not the user's.
            SchemaError: A value does not fit the dataset's schema.
        """
        self._guard("update", all)
        return self._verbs.update_selected(self._writable, update)

    def tag(self, *tags: str) -> int:
        """Add tags to every matching entity; returns how many were modified."""
        return self._verbs.write_selected(self._writable, {"$addToSet": {"tags": {"$each": clean_tags(tags)}}})

    def untag(self, *tags: str) -> int:
        """Remove tags from every matching entity; returns how many were modified."""
        return self._verbs.write_selected(self._writable, {"$pull": {"tags": {"$in": clean_tags(tags)}}})

    def delete(self, *, all: bool = False) -> int:
        """Delete the matching entities, and no others; returns how many were deleted.

        Args:
            all: Needed when the Selection has neither filter nor limit.
        """
        self._guard("delete", all)
        return self._verbs.write_selected(self._writable, None)

    def freeze(self, name: str, *, tags: Sequence[str] = ()) -> Any:
        """Give a name to these samples with these values, for ever. Returns a `FrozenSelection`.

        All samples are of one state of the data, in the order of the Selection. What is stored is about 32 bytes a
        sample and its values; blobs stay where they are, and outlive `delete()` and `gc()`. What another set has
        already is not stored again. If this is killed, there is no such set.

        Args:
            name: A text of 1 to 200 characters, which no frozen set of the project has.
            tags: Tags of the set.

        Raises:
            DuplicateError: There is a frozen set of this name.
            NotFoundError: The query names no dataset that exists.
            QueryError: An argument is malformed, or these are no samples, or frozen ones.
            CorruptBlobError: A sample has something else than a blob, or a blob in its document is damaged.
            StorageError: The blob store failed.
        """
        return self.db.select(Query("data", frozen=freeze(self.bound, name, tags)))

    # Combining

    def __and__(self, other: Mapping[str, Any] | Selection[R] | Query) -> Selection[R]:
        """This Selection narrowed by another filter.

        Raises:
            QueryError: One of the two has a limit, so that narrowing would change which entities it selects; or
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
        return self._replaced(self.query.replace(filter=merged, sort=query.sort or self.query.sort, fields=fields))

    def __repr__(self) -> str:
        return f"<Selection {self.query.brief} of project {self.db.project!r}>"

    # For the rest of the package

    @property
    def bound(self) -> BoundQuery:
        """The query, bound to its warehouse."""
        return bind(self.db.warehouse, self.query, self._seconds)

    def _replaced(self, query: Query) -> Self:
        found = copy.copy(self)
        found.query = query
        return found

    @property
    def _writable(self) -> BoundQuery:
        selection = self.bound
        selection.check_writable()
        return selection

    @property
    def _verbs(self) -> Verbs:
        verbs: Verbs = self.db.collection(self.query.collection)
        return verbs

    def _guard(self, verb: str, all: bool) -> None:
        if not all and not self.query.filter and self.query.limit is None:
            raise QueryError(f"this would {verb} everything in {self.query.collection} of project "
                             f"{self.db.project!r}; say {verb}(..., all=True) if that is meant")  # fmt: skip


def streamed(source: object, batch_size: int | None, options: StreamOptions) -> Stream:
    """The stream that a dataset of a framework is made of: the one that it is given, or a new one over a Selection.

    Raises:
        QueryError: It is neither, or a stream with options, of which it has its own.
    """
    if isinstance(source, Selection):
        if batch_size is None and tokens_of(options) is None:
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
