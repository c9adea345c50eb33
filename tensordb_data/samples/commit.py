"""Commit samples: make their segment durable, and them visible in one transaction, which ends after that.

The segment of many samples goes into a local store while their documents are inserted. A remote store may take too long
for a transaction that is open: there it comes first.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pymongo import ReturnDocument
from pymongo.errors import BulkWriteError, DuplicateKeyError, OperationFailure, PyMongoError

from tensordb_data.errors import DuplicateError, SchemaError, StorageError, TensorDBError
from tensordb_data.mongo.errors import DUPLICATE_KEY, is_too_large, write_errors
from tensordb_data.mongo.retry import retry_while_unavailable
from tensordb_data.samples.changes.commits import CommitLog, commit_log
from tensordb_data.samples.commit_lock import commit_lock
from tensordb_data.samples.encode.alongside import Alongside, entries_to_write
from tensordb_data.samples.encode.rows import number
from tensordb_data.samples.encode.segment import announce_segment, drop_segment, put_segment
from tensordb_data.samples.renamed import renamed_error
from tensordb_data.samples.write_batch import LIVE_SAMPLES, WriteBatch
from tensordb_data.schema import Scalar
from tensordb_data.schema.schema import Schema, located, stored_doc, stored_schema

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse
    from tensordb_data.warehouse.documents.samples import DatasetDocument

_LONGEST_WAIT = 0.25
_PATIENCE = 1.0
"""Seconds for which a transaction waits for its segment and the entries of its samples, while others wait for it."""


class TooLarge(Exception):
    """A transaction of so many samples is too large for the cache of the server."""


class _Late(Exception):
    """The segment, or the entries of the search index, take longer than a transaction can wait, or have failed."""


class _SegmentGone(StorageError):
    """A gc has taken this writer for dead, and has removed its segment."""


def register(warehouse: Warehouse, dataset: str) -> None:
    """Make the dataset's document if there is none. It gets its schema with the first samples."""
    new = {"seq": 0, "mut": 0, "schema": stored_doc(None), "created": dt.datetime.now(dt.timezone.utc)}
    with contextlib.suppress(DuplicateKeyError):  # another writer was first
        warehouse.index["datasets"].update_one(
            {"_id": warehouse.datasets.id(dataset)}, {"$setOnInsert": new}, upsert=True
        )


def is_empty(warehouse: Warehouse, dataset: str, session: Any = None) -> bool:
    """Whether the dataset has no samples (left)."""
    return (
        warehouse.index["data"].find_one({"_tdb.p": warehouse.project, "dataset": dataset}, {"_id": 1}, session=session)
        is None
    )


def merge_schema(
    warehouse: Warehouse,
    dataset: str,
    stored: Schema | None,
    given: Schema,
    session: Any = None,
    *,
    older: bool = False,
) -> Schema:
    """Merge the schema of a writer into that of the dataset.

    Args:
        warehouse: The warehouse.
        dataset: The dataset.
        stored: Its schema.
        given: That of the writer.
        session: Of a transaction.
        older: Whether the writer had the schema of the dataset when it was opened, which may have been widened since.

    Returns:
        The stored schema, with the optional fields that only the given one has. If the two do not fit and the dataset
        has no samples, the given one.

    Raises:
        SchemaError: The two do not fit, and the dataset has samples.
    """
    if stored is None:
        return given
    if stored == given:
        return stored
    try:
        return Schema({**stored, **stored.missing(given, dataset, older=older)})
    except SchemaError:
        if is_empty(warehouse, dataset, session):
            return given
        raise


def commit(
    warehouse: Warehouse,
    dataset: str,
    schema: Schema,
    batch: WriteBatch,
    *,
    holds_lock: bool = False,
    also: Callable[[Any, int], None] | None = None,
    skip_existing: bool = False,
    source: str | None = None,
) -> Schema:
    """Make a batch durable and visible, all of it or nothing.

    Args:
        warehouse: The warehouse.
        dataset: The dataset.
        schema: Its schema, as the writer knows it.
        batch: The samples.
        holds_lock: Whether the caller holds the commit lock.
        also: What else takes place in the transaction, called with the session and the mutation counter. The counter is
            raised if the batch replaces values of samples. It may be called several times.
        skip_existing: Leave out samples whose `_id` the dataset has already. `batch.skipped` counts them.
        source: What the samples are from, for the log of changes.

    Returns:
        The dataset's schema, which may have fields of other writers by now.

    Raises:
        DuplicateError: A sample's `_id` exists already.
        SchemaError: The dataset has been given another schema meanwhile.
        StorageError: The blob store failed.
        TooLarge: The server cannot take so many samples at once. None of them is visible; the segment stays.
    """
    warehouse.index.check_place()  # before anything makes a folder there again
    warehouse.index.make("data", "changes")
    if skip_existing:  # before their blobs are written; the transaction looks again
        new = _new_documents(warehouse, dataset, batch.docs)
        batch.skipped, batch.docs = batch.skipped + len(batch.docs) - len(new), new
        if not new:
            return schema
    n = len(batch) + len(batch.replaced)
    are_many = n > LIVE_SAMPLES and warehouse.index.is_server
    segment = batch.segment_id if batch.has_segment else None
    entries, storing = Alongside(entries_to_write(warehouse, batch.words(), are_many)), Alongside()
    body = _Body(warehouse, dataset, schema, batch, also, skip_existing)
    try:
        if segment is not None and not batch.stored:
            args = (warehouse, dataset, segment, batch.builder, batch.encoded(), n)
            store = warehouse.blobs.store(warehouse.blobs.write_root)
            if are_many and store.local_path("segments") is not None:
                storing = Alongside(announce_segment(*args)).start()
            else:
                put_segment(*args)
        body.alongside = (entries, storing)
        with contextlib.nullcontext() if holds_lock else commit_lock(warehouse, dataset):
            body.noted = commit_log(warehouse, dataset, source)
            stored = _transaction(warehouse, body)
            body.log()
            batch.skipped += body.skipped
            return stored
    except (DuplicateError, SchemaError):
        done = was_committed(warehouse, batch)
        if done:  # by an earlier attempt, whose answer was lost
            return schema
        if segment is not None and done is False and batch.first:
            drop_segment(warehouse, segment)
        raise
    except _SegmentGone:
        if segment is not None:  # it may have been put after the gc had removed what was there
            drop_segment(warehouse, segment)
        raise
    except OperationFailure as error:
        if not is_too_large(error) or n == 1:
            raise
        storing.wait()
        batch.stored = True
        raise TooLarge from error


def _transaction(warehouse: Warehouse, body: _Body) -> Schema:
    """Run the transaction. After an error, too, what is alongside has ended; an interrupt does not wait for it."""
    stored: Schema
    try:
        try:
            stored = warehouse.index.transaction(body)
        except _Late:
            for each in body.alongside:
                each.wait()
            stored = warehouse.index.transaction(body)
    except Exception:
        for each in body.alongside:
            each.end()
        raise
    return stored


def _new_documents(
    warehouse: Warehouse, dataset: str, docs: Sequence[dict[str, Any]], session: Any = None
) -> list[dict[str, Any]]:
    """Those of some documents whose `_id` no sample has, the first of each.

    Raises:
        DuplicateError: A sample of another dataset has an `_id`.
    """
    named = {"_id": {"$in": [doc["_id"] for doc in docs]}}

    def look() -> list[Mapping[str, Any]]:
        return list(warehouse.index["data"].find(named, {"dataset": 1, "_tdb.p": 1}, session=session))

    seen: set[Any] = set()
    # A transaction is tried again as a whole.
    for doc in look() if session is not None else retry_while_unavailable(look, reads=True):
        if (doc.get("dataset"), doc.get("_tdb")) != (dataset, {"p": warehouse.project}):
            raise DuplicateError(
                f"dataset {dataset!r}: a sample with _id {doc['_id']} exists already in another dataset; nothing of"
                " this commit was written"
            )
        seen.add(doc["_id"])
    return [doc for doc in docs if not (doc["_id"] in seen or seen.add(doc["_id"]))]  # type: ignore[func-returns-value]


def was_committed(warehouse: Warehouse, batch: WriteBatch) -> bool | None:
    """Whether a commit of unknown outcome took place; None when the database cannot say."""
    ids = batch.ids
    if not ids:
        return False
    try:
        found = {doc["_id"]: doc["_tdb"] for doc in warehouse.index["data"].find({"_id": {"$in": ids}}, {"_tdb": 1})}
    except (PyMongoError, TensorDBError):
        return None
    if len(found) < len(ids):
        return False
    first = found[ids[0]]
    consecutive = all(found[id]["s"] == first["s"] + i for i, id in enumerate(ids))
    ours = first["s"] in batch.numbers  # a sample without blobs of another writer looks alike otherwise
    return ours and consecutive and first.get("b") == batch.first_references()


def back_off(attempts: int) -> None:
    """Wait a little before a transaction is tried again after so many attempts, and not before the first."""
    if attempts:
        time.sleep(random.random() * min(_LONGEST_WAIT, 0.002 * 2**attempts))


class _Body:
    """The body of the transaction. It may run several times."""

    def __init__(
        self,
        warehouse: Warehouse,
        dataset: str,
        schema: Schema,
        batch: WriteBatch,
        also: Callable[[Any, int], None] | None,
        skip_existing: bool,
    ) -> None:
        self.skipped = 0
        """Samples that were left out, because another writer had committed them just before."""
        self._warehouse, self._dataset, self._schema, self._batch = warehouse, dataset, schema, batch
        self.alongside: tuple[Alongside, ...] = ()
        """What must be done before the transaction ends."""
        self._also, self._skip_existing, self._attempts = also, skip_existing, 0
        self.noted: CommitLog | None = None
        """Where the commit is noted; under the commit lock."""
        self.log: Callable[[], None] = lambda: None
        """Called when the transaction has taken place."""

    def __call__(self, session: Any) -> Schema:
        back_off(self._attempts)
        self._attempts += 1
        warehouse, index, batch = self._warehouse, self._warehouse.index, self._batch
        count = len(batch)
        # This comes first: of two writers that conflict, one stops here, before it has done any work.
        counter: DatasetDocument | None = index["datasets"].find_one_and_update(
            {"_id": warehouse.datasets.id(self._dataset)},
            {
                "$inc": {"seq": count, "mut": 1} if batch.replaced else {"seq": count},
                "$currentDate": {"changed": True},
            },
            return_document=ReturnDocument.AFTER,
            session=session,
        )
        if counter is None or "leaving" in counter:
            raise self._gone(counter)
        schema = self._merged_schema(counter, session)
        first = counter["seq"] - count + 1
        self._check_counter(counter, first, session)
        batch.numbers.add(first)
        docs: Sequence[Mapping[str, Any]]
        if self._skip_existing:
            docs = self._new(batch.docs, session)
            number(docs, first)
        else:
            docs = batch.numbered(first, plain=not index.is_server)
        for each in self.alongside:
            each.start()
        try:
            if docs:
                index["data"].insert_many(docs, session=session)
        except BulkWriteError as error:
            if is_too_large(error):
                raise
            raise _duplicate(self._dataset, error) from None
        # Before what others write, too: a segment that could not be stored is removed again.
        if not all(each.end(_PATIENCE) and each.failure is None for each in self.alongside):
            raise _Late
        if batch.has_segment:
            # A segment that a gc has marked lives again. If a gc removes it now, the two writes of `state` conflict.
            there = {"_id": batch.segment_id, "state": {"$in": ["writing", "live", "dying"]}}
            lives = {"$set": {"state": "live"}, "$unset": {"dying": ""}}
            if not index["segments"].update_one(there, lives, session=session).matched_count:
                raise _SegmentGone(
                    f"dataset {self._dataset!r}: this flush took so long that a gc has removed its segment; nothing of"
                    " it was committed: write these samples again"
                )
        if docs and self.noted is not None:
            self.log = partial(self.noted.done, self.noted.write(first, first + len(docs) - 1, session))
        if self._batch.replaced:
            self._note_stamps(counter, session)
        if self._also is not None:
            self._also(session, int(counter["mut"]))
        return schema

    def _note_stamps(self, counter: DatasetDocument, session: Any) -> None:
        """Note that the samples that are replaced are stamped, see `Mutation`."""
        number = int(counter["mut"])
        before = counter.get("stamps", {"since": 0, "to": -1})
        since = before["since"] if before["to"] == number - 1 else number - 1
        self._warehouse.index["datasets"].update_one(
            {"_id": counter["_id"]}, {"$set": {"stamps": {"since": since, "to": number}}}, session=session
        )

    def _check_counter(self, counter: DatasetDocument, first: int, session: Any) -> None:
        """Check that no sample has the numbers that follow. Only another tool can have set the counter back.

        Raises:
            StorageError: Some sample has.
        """
        seen: dict[Any, int] = self._warehouse.memo(("numbers", self._dataset), dict)
        created = counter.get("created")
        if first <= seen.get(created, 0) or created not in seen:
            taken = {"_tdb.p": self._warehouse.project, "dataset": self._dataset, "_tdb.s": {"$gte": first}}
            if self._warehouse.index["data"].find_one(taken, {"_id": 1}, session=session) is not None:
                raise StorageError(
                    f"dataset {self._dataset!r}: its counter says {first - 1}, and samples have higher numbers, so its "
                    "document was edited or made anew by another tool; nothing of this commit was written: "
                    "`tensordb fsck --repair` sets the counter right"
                )
        seen[created] = counter["seq"]  # if this transaction fails, or leaves some out, the next one looks again

    def _new(self, docs: list[dict[str, Any]], session: Any) -> list[dict[str, Any]]:
        """Those documents that are still new. The others need no numbers."""
        new = _new_documents(self._warehouse, self._dataset, docs, session)
        self.skipped = len(docs) - len(new)
        if self.skipped:
            self._warehouse.index["datasets"].update_one(
                {"_id": self._warehouse.datasets.id(self._dataset)}, {"$inc": {"seq": -self.skipped}}, session=session
            )
        return new

    def _fit(self, schema: Schema) -> None:
        """Make floats of the integers that were added before the schema was widened."""
        for name, field in schema.items():
            before = self._schema.get(name)
            if not (isinstance(field, Scalar) and isinstance(before, Scalar)) or before.kind == field.kind:
                continue
            for doc in (*self._batch.docs, *self._batch.replaced):
                try:
                    doc.update({name: field.read(doc[name])} if name in doc else {})
                except SchemaError as error:
                    raise SchemaError(located(self._dataset, name, field, error)) from None

    def _gone(self, counter: DatasetDocument | None) -> SchemaError:
        """The error if the dataset was dropped or renamed, or is about to be."""
        name = {"_id.p": self._warehouse.project, "was": self._dataset}
        new = self._warehouse.index["datasets"].find_one(name) if counter is None else None
        to = new["_id"]["d"] if new is not None else None if counter is None else counter["leaving"]["to"]
        what = "removed" if to is None else f"renamed to {to!r}"
        return SchemaError(
            f"dataset {self._dataset!r} was {what} while this writer was open, and nothing of this commit was written; "
            "open a new writer"
        )

    def _merged_schema(self, counter: DatasetDocument, session: Any) -> Schema:
        stored = stored_schema(counter["schema"])
        for old, new in counter.get("renamed", {}).items():
            if old in self._schema and old not in (stored or {}):
                raise renamed_error(self._dataset, old, new)
        schema = merge_schema(self._warehouse, self._dataset, stored, self._schema, session, older=True)
        self._fit(schema)
        if schema != stored:
            self._warehouse.index["datasets"].update_one(
                {"_id": counter["_id"]}, {"$set": {"schema": stored_doc(schema)}}, session=session
            )
        return schema


def _duplicate(dataset: str, error: BulkWriteError) -> Exception:
    for failure in write_errors(error):
        if failure.get("code") == DUPLICATE_KEY:
            id = (failure.get("keyValue") or {}).get("_id", failure.get("op", {}).get("_id"))
            return DuplicateError(
                f"dataset {dataset!r}: a sample with _id {id} exists already; nothing of this commit was written"
            )
    return error
