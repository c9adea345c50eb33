"""What machines and people find out about samples: annotations, feedback of runs, embeddings and labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tensordb_data.api.collection import Collection
from tensordb_data.api.selection import Selection
from tensordb_data.curation.embed import Embedded, embed
from tensordb_data.curation.label_studio import ImportedAnnotations, import_annotations
from tensordb_data.feedback.buffer import feedback_buffer
from tensordb_data.samples.annotate import annotate
from tensordb_data.samples.existing.annotate_many import annotate_many
from tensordb_data.samples.sample import Sample
from tensordb_data.warehouse.annotation import Annotated

if TYPE_CHECKING:
    from bson import ObjectId


class FoundOut(Collection[Sample]):
    """The methods of `db.data` that note what was found out about samples."""

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
