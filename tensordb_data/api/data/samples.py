"""Data: samples in datasets."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any, overload

from tensordb_data.api.collection import Collection
from tensordb_data.api.frozen.selection import FrozenSelection, named_set
from tensordb_data.api.selection import Selection
from tensordb_data.common.listing import Listing
from tensordb_data.common.options import suggesting
from tensordb_data.curation.embed import Embedded, embed
from tensordb_data.curation.label_studio import ImportedAnnotations, import_annotations
from tensordb_data.errors import QueryError
from tensordb_data.feedback.buffer import feedback_buffer
from tensordb_data.ingest.options import IngestOptions
from tensordb_data.samples.annotate import annotate
from tensordb_data.samples.changes.apply import update_samples
from tensordb_data.samples.changes.history import Change, SampleChange, history, list_changes
from tensordb_data.samples.changes.prune import prune_changes
from tensordb_data.samples.compact import Compacted, Progress, compact
from tensordb_data.samples.delete import delete_samples
from tensordb_data.samples.evolve import DatasetSchema
from tensordb_data.samples.existing.annotate_many import annotate_many
from tensordb_data.samples.rename import drop, rename
from tensordb_data.samples.sample import Sample, make_samples
from tensordb_data.samples.update import prepare_update
from tensordb_data.samples.writer import Existing, Writer
from tensordb_data.search.reindex import reindexing
from tensordb_data.table.datasets import Dataset, list_datasets, one_dataset
from tensordb_data.time.cards import FrozenCard, list_sets
from tensordb_data.time.diff import Diff, diff
from tensordb_data.time.overlap import Overlap, overlap
from tensordb_data.warehouse.annotation import Annotated
from tensordb_data.warehouse.bound_query import BoundQuery, reported

if TYPE_CHECKING:
    from bson import ObjectId
    from typing_extensions import Unpack

    from tensordb_data.api.protocol import Facade
    from tensordb_data.common.system.progress import Progress as Showing
    from tensordb_data.ingest.report import Report
    from tensordb_data.schema import Field


class Data(Collection[Sample]):
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

    def annotate(self, values: Mapping[ObjectId, Mapping[str, Any]], *, source: str) -> Annotated:
        """Set values that a machine has found, and note who set each of them, and when.

        All values are checked against the schemas before the first one is set. Then they are data like any other. The
        field `provenance` has the last source and time of each annotated field:
        `{"label": {"source": "model:cnn-1@400", "at": datetime}}`. It can be queried:
        `db.data.find({"provenance.label.source": "model:cnn-1@400"})`. When a field is updated in another way, its
        provenance is removed.

        Args:
            values: Fields and their values, by the `_id` of the sample. A field that no sample has is added to the
                schema, as an optional field. Blobs are immutable and refused.
            source: Who annotates, such as `"model:cnn-1@400"`; at most 200 characters.

        Returns:
            How many samples were annotated, and the ids that no sample of this project has.

        Raises:
            QueryError: `values` or `source` is malformed, or names a field that cannot be updated.
            SchemaError: A value does not fit its dataset's schema; nothing was annotated.
        """
        return annotate(self._warehouse, values, source)

    def feedback(self, run: str, ids: Sequence[ObjectId], /, **numbers: Any) -> None:
        """Note what a run has found out about samples: `db.data.feedback("cnn-1", batch["_id"], loss=losses)`.

        It takes microseconds, and waits for neither the server nor a device: a thread stores the numbers within about
        a second, at `db.close()`, and at exit. A process that is killed loses those of the last second. Of each sample
        and name, count, mean, variance and last value are kept, over all processes of the run. If the server is away,
        numbers are kept in memory, put together by sample.

        A stream draws by them with `weights=Feedback("cnn-1", "loss")`, and `Selection.feedback_of` reads them. They
        belong to the run: `db.runs({"name": "cnn-1"}).delete()` deletes them.

        Args:
            run: The name of the run. It is made if it does not exist.
            ids: The ids of n samples, such as `batch["_id"]`. One may come several times.
            numbers: For each name n numbers, of shape (n,): of NumPy, PyTorch, TensorFlow or JAX, on any device, or a
                list. They are copied. NaN and infinite numbers are not counted.

        Raises:
            QueryError: A name, the ids or the numbers are malformed, or their lengths differ.
            StorageError: The warehouse is closed.
        """
        feedback_buffer(self._warehouse).add(run, ids, numbers)

    def annotate_many(self, /, *, _id: Iterable[ObjectId | str], source: str, **columns: Any) -> Annotated:
        """Annotate samples by columns: the fast way, and the one for arrays, such as embeddings.

        It is `annotate` otherwise: all values are checked before the first one is set, and `provenance` says who has
        set them. An array becomes a blob of an optional field, which is added to the schema if there is none of the
        name. A blob that is there is replaced: plans that are older still read the earlier one. A blob field that every
        sample has is refused. To annotate the same again does no harm.

        Args:
            _id: The `_id` of each of n samples, all different; in a table they may be text.
            source: Who annotates, such as `"model:cnn-1@400"`; at most 200 characters.
            **columns: For each field an array of shape (n, ...) or a list of n values. A number or a string is the
                value of all samples. None takes the value of a sample away. A field called `source` is for `annotate`.

        Returns:
            How many samples were annotated, and the ids that no sample of this project has.

        Raises:
            QueryError: An id is none or is there twice, or `source` is malformed.
            SchemaError: A column has another length, or a value does not fit its dataset's schema; nothing was
                annotated.
            StorageError: The blob store failed; nothing was annotated.
        """
        return annotate_many(self._warehouse, _id, columns, source)

    def embed(
        self,
        selection: Selection[Sample],
        model: Any,
        field: str = "embedding",
        *,
        inputs: str | Sequence[str] | None = None,
        batch_size: int = 64,
        source: str | None = None,
        replace: bool = False,
        transform: Callable[..., Any] | str | None = None,
        workers: int = 0,
        max_failures: int | float = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Embedded:
        """Store what a model makes of each sample, as a field of it: a vector, or another array of a fixed shape.

        The field is optional, and is added to the schema. `Selection.similar` and `duplicates` compare such vectors.
        `provenance` says by which source each was made. Samples that have a vector of this source are left out, so a
        call that was killed goes on with what is missing, and new samples get theirs by the same call. What was
        computed is written every 8,192 samples, 16 MB or 30 seconds.

        Args:
            selection: The samples.
            model: A function that takes a batch, a dict of arrays, and returns an array (n, ...); or takes the values
                of the one field that `inputs` names. A module of PyTorch is called with a tensor on its device, in its
                evaluation mode and without gradients; a model of Keras with an array; an object with a method
                `encode`, as of sentence-transformers, with a list.
            field: The field of the vectors.
            inputs: The field that the model gets, or the fields of the batch; None for a batch of all that every
                sample has.
            batch_size: Samples that the model gets at once.
            source: Who made the vectors, such as `"model:cnn-1@400"`. None for `"embed:"` and the name of the model,
                which does not tell two trainings of it apart.
            replace: Replace vectors of other sources. Without it, they are an error, for vectors of two models cannot
                be compared.
            transform: Applied to each sample before, see `Selection.stream`.
            workers: Run the transform in so many processes.
            max_failures: How many samples may be left out that cannot be read, see `Selection.stream`.
            progress: Called with the samples done, and those in all.

        Returns:
            How many samples got a vector, had one, failed, and were deleted meanwhile.

        Raises:
            QueryError: An argument is malformed, the model gave something else, or there are vectors of another source.
            SchemaError: The field is there and holds something else, or arrays of another shape.
        """
        options = {"transform": transform, "workers": workers, "max_failures": max_failures}
        return embed(selection.bound, model, field, inputs, batch_size, source, replace, options, progress)

    def import_label_studio(
        self,
        path: str | os.PathLike[str],
        fields: Mapping[str, str] | None = None,
        *,
        values: Mapping[str, Mapping[str, Any]] | None = None,
        source: str = "label-studio",
    ) -> ImportedAnnotations:
        """Set values that people have given in Label Studio, by the tasks of `Selection.to_label_studio`.

        The values of a task are those of its newest annotation that was not skipped. A single choice is a text, or an
        integer where the field holds integers; several are a list. Regions, such as boxes, are a list of dicts as Label
        Studio has them, in percent, with the size of the picture. To import the same file again changes nothing.

        Args:
            path: The file that Label Studio has exported as JSON.
            fields: The field for each control of the labelling interface (its `from_name`); other controls are left
                out. None: each is a field of its own name.
            values: For each field what its choices stand for: `{"label": {"cat": 0, "dog": 1}}`.
            source: What `provenance` says, followed by the number of the annotator: `"label-studio:7"`.

        Returns:
            How many samples were changed, which are unknown, which have annotations that differ, and how many tasks are
            open or not of this library.

        Raises:
            StorageError: The file cannot be read.
            SchemaError: It is not of Label Studio, or a value does not fit its field.
        """
        return import_annotations(self._warehouse, path, fields, values, source)

    def history(self, id: ObjectId) -> Listing[SampleChange]:
        """Who changed a sample, when, and how: its creation, updates, tags, annotations, ingests, and its deletion.

        It is a list, the newest change last, and a table when it is printed. Each change has `at`, `what`, `who`, `old`
        and `new`. Values are known where the log has them: those of a change of very large values are left out, and
        `left_out` says so. Changes that were made before this warehouse had a log are not known.

        Args:
            id: The `_id` of the sample, which may be deleted.

        Raises:
            NotFoundError: There is no such sample in this project, and there was none that the log knows of.
            QueryError: `id` is no ObjectId.
        """
        return history(self._warehouse, id)

    def changes(self, dataset: str, *, limit: int | None = None) -> Listing[Change]:
        """The log of changes of a dataset: what was done, when, by whom, and to how many samples.

        It is a list, the newest last, and a table when it is printed. Commits of one process within a minute are one
        entry; a change of more than 10,000 samples has an entry for each 10,000. What a change did to a sample is in
        `history`.

        Args:
            dataset: The name of the dataset.
            limit: Only so many, the newest ones.

        Raises:
            NotFoundError: There is no such dataset.
        """
        return list_changes(self._warehouse, dataset, limit)

    def prune_changes(self, dataset: str, *, older_than: dt.timedelta) -> int:
        """Remove entries from the log of changes of a dataset. Nothing else removes any, but `drop`.

        The log notes that, so that a history with a hole says so.

        Args:
            dataset: The name of the dataset.
            older_than: How old entries must be, on the clock of the server.

        Returns:
            How many entries were removed.

        Raises:
            NotFoundError: There is no such dataset.
            QueryError: `older_than` is no positive timedelta.
        """
        return prune_changes(self._warehouse, dataset, older_than)

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

    @overload
    def frozen(self, name: None = None) -> Listing[FrozenCard]: ...

    @overload
    def frozen(self, name: str) -> FrozenSelection: ...

    def frozen(self, name: str | None = None) -> Listing[FrozenCard] | FrozenSelection:
        """A frozen set by its name; or the cards of all, the newest first, which are a table when they are printed.

        Args:
            name: The name that `Selection.freeze` gave it; None for all.

        Raises:
            NotFoundError: There is no frozen set of this name.
        """
        if name is None:
            return list_sets(self._warehouse)
        return named_set(self.db, name)

    def diff(self, old: str | Selection[Sample], new: str | Selection[Sample]) -> Diff:
        """Compare two frozen sets, or one with the samples of now: what was added, removed and changed.

        Args:
            old: The name of a frozen set, or a Selection.
            new: The same.

        Returns:
            `added`, `removed` and `changed`, each of which has a length at once and reads its samples as it is
            iterated. A change has `(old, new)` by field. It is a table of the counts when it is printed.

        Raises:
            NotFoundError: There is no frozen set of such a name, or no such dataset.
            QueryError: An argument is neither a name nor a Selection of samples of this project.
        """
        return diff(self._state(old), self._state(new))

    def overlap(
        self, one: str | Selection[Sample], other: str | Selection[Sample], *, fields: Sequence[str] | None = None
    ) -> Overlap:
        """Which samples two Selections share, such as those for training and those for a test.

        Args:
            one: A Selection, or the name of a frozen set.
            other: The same.
            fields: The blobs by whose content samples are the same; None for all that both have. Without blobs in
                common it is the values of all fields that both have.

        Returns:
            `by_id`, the samples that are in both; and `by_content`, pairs of different samples whose stored bytes are
            equal. It is a table of the counts when it is printed.

        Raises:
            NotFoundError: There is no frozen set of such a name, or no such dataset.
            QueryError: An argument is malformed.
        """
        return overlap(self._state(one), self._state(other), fields)

    def _state(self, named: object) -> BoundQuery:
        if isinstance(named, str):
            return self.frozen(named).bound
        if isinstance(named, Selection) and named.db == self.db:
            return named.bound
        raise QueryError(
            f"expected the name of a frozen set, or a Selection of this warehouse and project; found {named!r:.200}"
        )

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
