"""Data: samples in datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from tensordb_data.mutations import update_samples
from tensordb_data.records.annotate import Annotated, annotate
from tensordb_data.records.base import Collection
from tensordb_data.records.compact import Compacted, Progress, compact
from tensordb_data.records.sample import Sample, make_samples
from tensordb_data.records.tombstones import delete_samples
from tensordb_data.records.writer import Writer
from tensordb_data.search.follow import findable

if TYPE_CHECKING:
    from bson import ObjectId

    from tensordb_data.codecs import Field
    from tensordb_data.selection import Selection
    from tensordb_data.warehouse import TensorDB


class Data(Collection[Sample]):
    """`db.data`: samples, each in a dataset, which has a schema."""

    def __init__(self, db: TensorDB) -> None:
        super().__init__(db, "data", Sample)

    def writer(
        self,
        dataset: str,
        *,
        schema: Mapping[str, Field | type] | None = None,
        compression: str | None = None,
        flush_every: float | EllipsisType | None = ...,
        live: bool = False,
    ) -> Writer:
        """Open a writer of a dataset, which is made when it does not exist.

        Args:
            dataset: Its name.
            schema: Field by name; inferred from the first sample of a new dataset when None. For a dataset with
                samples it must be the stored one, at most with further optional fields.
            compression: `"zstd"` or `"zstd:LEVEL"` for arrays, bytes and text, blob by blob where it pays.
            flush_every: Commit what is pending so many seconds after it was added; None for never. Left out, 10
                seconds, and 50 milliseconds for a live writer.
            live: For low latency: small, frequent commits, with blobs of at most 4 KiB inside the documents until
                `compact` moves them into segments.

        Raises:
            SchemaError: `schema` does not fit the stored one.
        """
        return Writer(self._db, dataset, schema=schema, compression=compression, flush_every=flush_every, live=live)

    def annotate(self, values: Mapping[ObjectId, Mapping[str, Any]], *, source: str) -> Annotated:
        """Set values that a machine has found, and note for each who set it, and when.

        The values are checked against the schemas before any is set, and are then data like any other. Beside them
        stands `provenance`, of each such field the last source and time:
        `{"label": {"source": "model:cnn-1@400", "at": datetime}}`. It can be queried,
        `db.data.find({"provenance.label.source": "model:cnn-1@400"})`, and goes when the field is updated otherwise.

        Args:
            values: For each sample's `_id` its fields and their values. A field that no sample has is added to the
                schema, as an optional one. Blobs are immutable and refused.
            source: Who annotates, such as `"model:cnn-1@400"`; at most 200 characters.

        Returns:
            How many samples were annotated, and the ids that are of no sample of this project.

        Raises:
            QueryError: `values` or `source` is malformed, or names what cannot be updated.
            SchemaError: A value does not fit its dataset's schema; nothing was annotated.
        """
        return annotate(self._db, values, source)

    def compact(self, dataset: str, *, progress: Progress | None = None) -> Compacted:
        """Move the blobs that live writers have put into documents into segments, and rewrite segments of which more
        than half is dead, since its samples were deleted.

        It may run at any time, beside writers, readers and other compactions, and may be stopped or killed: what was
        moved stays moved, and the next one goes on. Ids, sequence numbers and values stay as they are; the mutation
        counter of the dataset goes up, so that the next pass of a stream reads the new places. A pass in progress, and
        one that is resumed, delivers what it would have delivered. Objects of segments that nothing refers to any more
        are kept; the segments are marked as dying.

        Args:
            dataset: Its name. Samples committed after the call began are left for the next one.
            progress: Called with sequence numbers done, of how many, and the report so far.

        Returns:
            What was done. Samples with a damaged blob stay as they are and are named in `damaged`.

        Raises:
            NotFoundError: There is no such dataset.
            StorageError: The blob store failed.
        """
        return compact(self._db, dataset, progress)

    def schema(self, dataset: str) -> Mapping[str, Field] | None:
        """The schema of a dataset; None when there is no such dataset, or it never had a sample."""
        return self._db._schemas([dataset]).get(dataset)

    def _entities(self, docs: Sequence[Mapping[str, Any]]) -> list[Sample]:
        return make_samples(self._db, docs)

    def _order(self) -> list[tuple[str, int]]:
        return [("dataset", 1), ("_tdb.s", 1)]

    def _projection(self, fields: Sequence[str] | None) -> dict[str, Any] | None:
        if fields is None:
            return None
        blobs = (f"_tdb.b.{name}" for name in fields)
        return dict.fromkeys(("tags", "dataset", "_tdb.p", "_tdb.s", *fields, *blobs), 1)

    def _update(self, selection: Selection[Sample], update: Mapping[str, Any]) -> int:
        from tensordb_data.records.relabel import prepare_update

        return self._write(selection, prepare_update(selection, update))

    def _write(self, selection: Selection[Sample], update: Mapping[str, Any] | None) -> int:
        from tensordb_data.selection import reported

        with reported(selection.query):
            if update is None:
                return delete_samples(selection)
            with findable(selection, update):
                return update_samples(selection, update)
