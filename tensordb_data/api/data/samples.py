"""Data: samples in datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from tensordb_data.api.data.found_out import FoundOut
from tensordb_data.api.data.over_time import OverTime
from tensordb_data.common.listing import Listing
from tensordb_data.common.options import suggesting
from tensordb_data.ingest.options import IngestOptions
from tensordb_data.samples.changes.apply import update_samples
from tensordb_data.samples.compact import Compacted, Progress, compact
from tensordb_data.samples.delete import delete_samples
from tensordb_data.samples.evolve import DatasetSchema
from tensordb_data.samples.rename import drop, rename
from tensordb_data.samples.sample import Sample, make_samples
from tensordb_data.samples.update import prepare_update
from tensordb_data.samples.writer import Existing, Writer
from tensordb_data.search.reindex import reindexing
from tensordb_data.table.datasets import Dataset, list_datasets, one_dataset
from tensordb_data.warehouse.bound_query import BoundQuery, reported

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tensordb_data.api.protocol import Facade
    from tensordb_data.common.system.progress import Progress as Showing
    from tensordb_data.ingest.report import Report
    from tensordb_data.schema import Field


class Data(FoundOut, OverTime):
    """`db.data`: samples. Each sample belongs to a dataset, and a dataset has a schema."""

    def __init__(self, db: Facade) -> None:
        super().__init__(db, "data", Sample)

    def writer(
        self,
        dataset: str,
        *,
        schema: Mapping[str, Field | type] | None = None,
        compression: str | None = None,
        flush_every: float | EllipsisType | None = ...,
        live: bool = False,
        existing: Existing = "error",
    ) -> Writer:
        """Open a writer for a dataset. The dataset is made if it does not exist.

        Args:
            dataset: The name of the dataset.
            schema: The kind of each field, by name. With None, the schema of a new dataset is inferred from its first
                sample. If the dataset has samples, `schema` must be the stored one; it may add optional fields.
            compression: `"zstd"` or `"zstd:LEVEL"` for arrays, bytes and text. A blob is compressed if this makes it
                smaller.
            flush_every: Commit pending samples this many seconds after they were added; None for never. By default 10
                seconds, and 50 milliseconds for a live writer.
            live: For low latency: the writer makes small, frequent commits, and puts blobs of at most 4 KiB into the
                documents. `compact` moves them into segments.
            existing: What to do with a sample whose `_id` or `_key` the dataset has already: `"error"`, or `"skip"` it,
                so that a task that is run again adds nothing twice.

        Raises:
            SchemaError: `schema` does not fit the stored one.
        """
        return Writer(
            self._warehouse, dataset, schema=schema, compression=compression, flush_every=flush_every, live=live,
            existing=existing,
        )  # fmt: skip

    @suggesting(IngestOptions)
    def ingest(
        self,
        source: Any,
        dataset: str,
        *,
        in_place: bool = False,
        progress: bool | Showing[Report] | None = None,
        dry_run: bool = False,
        **options: Unpack[IngestOptions],
    ) -> Report:
        """Add the rows of a source to a dataset: folders of images, tables in files and in memory, and other formats.

        Twice adds nothing: a row is known by its `key`; without one, a row of a table by its content, and a file by its
        path below the source. A row that has changed is an update. A call that was killed is taken up by the same call,
        and files that are in are not opened again.

        Args:
            source: A path, a glob, a list of such, or a URL, with `{000..099}` for many; a DataFrame or another table
                in memory; a dataset of Hugging Face or PyTorch; or any iterable of dicts.
            dataset: The name of the dataset. It is made if it does not exist.
            in_place: Whether files stay where they are, and samples point into them: files of images, ranges of tar
                files, MDS shards, TFRecord and Arrow files. What cannot be pointed at is copied, and the report says
                how much. The files must be below a root (see `TensorDB(roots=)`); where none holds them, one is named
                after their folder, in the config file of this user.
            progress: True shows a bar. A function is called now and then with the bytes done, the bytes in all, and the
                report so far.
            dry_run: Whether to write nothing, and only report what would be done, and the schema.
            **options: `Columns(fields, skip, rename, types, names, set)`, which columns become which fields;
                `Rows(key, source_id, on_change, prune)`, what identifies a row; `Checks(on_error, on_damage, verify)`,
                what happens to what is damaged; `Reading(format, files, base, split, …)`, how the source is read. Give
                them as the groups `columns=`, `rows=`, `checks=` and `reading=`, or each option by itself.

        Returns:
            What was added, updated, unchanged and missing, what failed and why, and what was ignored.

        Raises:
            SchemaError: The source is of an unknown kind, or does not fit the dataset or the options.
            IngestError: More failed than `on_error` allows.
        """
        from tensordb_data.ingest.run import run_ingest

        return run_ingest(self._warehouse, source, dataset, progress, dry_run, options, in_place=in_place)

    def compact(self, dataset: str, *, progress: Progress | None = None) -> Compacted:
        """Move blobs of live writers from documents into segments, and rewrite segments that are mostly deleted.

        A segment is rewritten if more than half of it belongs to deleted samples.

        Compaction may run at any time, beside writers, readers and other compactions. It may be stopped or killed: the
        blobs that it has moved stay moved, and the next call goes on. Ids, sequence numbers and values do not change.
        The mutation counter of the dataset goes up, so that the next pass of a stream reads the new places. A pass in
        progress, or resumed, delivers the same batches as without compaction. Segments that nothing refers to any more
        are marked as dying; their objects are kept.

        Args:
            dataset: The name of the dataset. Samples that are committed after the call began are left for the next
                call.
            progress: Called with the sequence numbers done, how many there are, and the report so far.

        Returns:
            What was done. Samples with a damaged blob stay as they are and are named in `damaged`.

        Raises:
            NotFoundError: There is no such dataset.
            StorageError: The blob store failed.
        """
        return compact(self._warehouse, dataset, progress)

    def rename(self, old: str, new: str) -> int:
        """Rename a dataset. Samples, ids, sequence numbers and blobs stay.

        It may run beside readers and writers. Writers of the old name that are open fail at their next commit, with an
        error that says the new name. What they have committed before is in the new dataset. Readers that begin
        meanwhile wait, as for an update. If it is stopped, call it again.

        A rebuild of a lost index gives samples the name under which their segments were written.

        Returns:
            How many samples this call has moved.

        Raises:
            NotFoundError: There is no dataset of the old name.
            DuplicateError: There is one of the new name.
            BusyError: Samples of it are being changed.
            QueryError: A name is malformed, or the dataset is being dropped, or renamed to another name.
        """
        return rename(self._warehouse, old, new)

    def drop(self, dataset: str) -> int:
        """Delete a dataset: all of its samples, and its schema. A gc removes the blobs.

        It may run beside readers and writers. Writers of it that are open fail at their next commit. If it is stopped,
        call it again.

        Returns:
            How many samples this call has deleted.

        Raises:
            NotFoundError: There is no such dataset.
            QueryError: The name is malformed, or the dataset is being renamed.
            StorageError: The blob store failed; call it again.
        """
        return drop(self._warehouse, dataset)

    def schema(self, dataset: str) -> DatasetSchema | None:
        """The schema of a dataset; None when there is no such dataset, or it never had a sample.

        It is a mapping of name to field. `db.data.schema("x").evolve(mask=Array("uint8", optional=True))` widens it.
        """
        found = self._warehouse.datasets.schemas([dataset]).get(dataset)
        return None if found is None else DatasetSchema(found, self._warehouse, dataset)

    def datasets(self) -> Listing[Dataset]:
        """The datasets of the project, by name, each with its number of samples, bytes, schema and times.

        It is a list, and a table when it is printed. The samples of a dataset are counted for half a second; if that
        is too short, `count` is an estimate, and `exact` is False.
        """
        return list_datasets(self._warehouse)

    def dataset(self, name: str) -> Dataset:
        """One dataset, as in `datasets`.

        Raises:
            NotFoundError: There is no such dataset.
        """
        return one_dataset(self._warehouse, name)

    def entities(self, docs: Sequence[Mapping[str, Any]]) -> list[Sample]:
        return make_samples(self._warehouse, docs)

    def update_selected(self, selection: BoundQuery, update: Mapping[str, Any]) -> int:
        return self.write_selected(selection, prepare_update(selection, update))

    def write_selected(self, selection: BoundQuery, update: Mapping[str, Any] | None) -> int:
        with reported(selection.query):
            if update is None:
                return delete_samples(selection)
            with reindexing(selection, update):
                return update_samples(selection, update)
