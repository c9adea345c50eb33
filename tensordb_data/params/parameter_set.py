"""One saved parameter set, and the fields of its document."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bson import ObjectId

from tensordb_data.common.listing import Listing
from tensordb_data.errors import CorruptBlobError, SchemaError
from tensordb_data.params.apply import apply_to
from tensordb_data.params.difference import Difference
from tensordb_data.params.exchange.exporting import Exported, export_set
from tensordb_data.params.load import describe, load_parts, suggest_intact_set
from tensordb_data.params.load_in_place import load_in_place
from tensordb_data.params.names import Renames
from tensordb_data.params.tensor_info import TensorInfo, tensors_of
from tensordb_data.query.query import Query
from tensordb_data.query.tags import clean_tags
from tensordb_data.schema.schema import PROVENANCE
from tensordb_data.tensors.leaf import Framework
from tensordb_data.warehouse.metrics import check_names, scalar
from tensordb_data.warehouse.record import Record

RESERVED = frozenset(("_id", "_tdb", "run", "step", "tags", "created", "lineage", PROVENANCE))


class ParameterSet(Record):
    """A checkpoint: saved parameters, and the metrics that they were saved with: `best["val_acc"]`."""

    __slots__ = ()

    collection = "params"

    @property
    def run(self) -> str | None:
        """The run that saved it; None if no run was named."""
        found: str | None = self._doc.get("run")
        return found

    @property
    def step(self) -> int | None:
        """The step after which it was saved; None if no step was named."""
        found: int | None = self._doc.get("step")
        return found

    @property
    def attempt(self) -> ObjectId | None:
        """The attempt of the run that saved it, of `Run.attempts`; None if none was under way, or of version 0.1."""
        found: ObjectId | None = self._doc["_tdb"].get("a")
        return found

    @property
    def query(self) -> Query:
        """The query that names exactly this checkpoint: plain data, to store in a job or a configuration."""
        return Query("params", {"_id": self.id})

    @property
    def parts(self) -> list[str]:
        """The parts that were saved: `["model"]`; a training state also has `optimizer`, `rng`, `stream` and more."""
        return list(self._doc["_tdb"]["parts"])

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors, including those that it shares with other checkpoints."""
        return int(self._doc["_tdb"]["bytes"])

    @property
    def lineage(self) -> Mapping[str, Any]:
        """What the checkpoint was made from.

        It has `parent` (the checkpoint before it, or the one that the run started from), `code` (script, git commit,
        and whether tracked files differ from that commit) and `versions`. From a checkpointer it also has `model` and
        `optimizer` (classes), `architecture`, `data` (queries with fingerprint, seed and batch size; `Query.from_json`
        reads them) and `position` (in the data).
        """
        return dict(self._doc.get("lineage", {}))

    @property
    def tensors(self) -> Listing[TensorInfo]:
        """Its tensors: part, name, dtype, shape and bytes of each. None of them is read.

        Raises:
            CorruptBlobError: The structure of the checkpoint is damaged.
        """
        with self._offered():
            return tensors_of(self._warehouse, self._doc)

    def load(self, part: str = "model", *, framework: Framework = "auto") -> Any:
        """The parameters, in the structure in which they were saved. Every tensor is checked against its hash.

        Tensors that were saved from torch become torch tensors on the CPU if torch has been imported, so that
        `model.load_state_dict(best.load())` works. All others become NumPy arrays. All of them are copies, which the
        caller may change.

        Args:
            part: One of `parts`.
            framework: `"auto"`; or `"numpy"` or `"torch"` for all tensors.

        Raises:
            CorruptBlobError: Stored bytes do not match their checksum; names the tensor.
            CheckpointError: There is no such part, or it is not complete.
            StorageError: The blob store failed.
        """
        with self._offered():
            return load_parts(self._warehouse, self._doc, [part], framework)[part]

    def load_into(self, model: Any, *, strict: bool = True, prefix: str = "", rename: Renames = ()) -> Difference:
        """Loads the parameters into a torch module or a Keras model, by their names.

        What `torch.compile`, DataParallel, DistributedDataParallel and FSDP add to names does not count, on either
        side. A tensor that is tied to another in the model may be missing. Weights that were saved from
        `keras_model.get_weights()` have no names: they are loaded by order and shape.

        Args:
            model: The model.
            strict: Whether all tensors must fit. With False, the tensors that fit by name and shape are loaded, and the
                rest of the model stays as it was.
            prefix: Load only the tensors whose names begin so, such as `"backbone."`. It is taken away.
            rename: Then, what names begin with and what takes its place: `{"fc.": "head."}`, where the longest that
                fits counts, or pairs, of which the first does.

        Returns:
            What matched, and what differs: nothing if `strict`.

        Raises:
            StateError: The parameters do not fit, or with `strict=False` none of them does, or `prefix` or `rename`
                fits no name. The message lists missing and unexpected tensors and different shapes. The model is as it
                was before.
            CorruptBlobError: Stored bytes do not match their checksum; names the tensor.
        """
        with self._offered():
            if strict and not prefix and not rename:
                loaded = load_in_place(self._warehouse, self._doc, model)
                if loaded is not None:
                    return Difference(matched=loaded)
        return apply_to(model, self.load(), describe(self._doc), strict, prefix=prefix, rename=rename)

    def export(self, path: str | Path, *, part: str = "model", overwrite: bool = False) -> Exported:
        """Writes parameters into a file for other programs. The file is there whole or not at all.

        A `.safetensors` file is written tensor by tensor, without torch. What is nested gets dotted names,
        `"layers.0.weight"`; a tensor that is tied to another one is in it once. A `.pt` file (or `.pth`, `.bin`) keeps
        the structure and needs torch; `torch.load` reads it with `weights_only=True`.

        Args:
            path: The file. Its suffix says which format.
            part: One of `parts`.
            overwrite: Whether to replace a file of this name.

        Returns:
            What was written: the number of tensors, which are tied, which names are new, and what was left out since
            it is no tensor. What is left out is also a warning.

        Raises:
            DuplicateError: The file is there already.
            CheckpointError: There is no such part; it has no tensors; two tensors would have one name; or the format
                has no name for a dtype.
            MissingExtraError: A `.pt` file needs torch.
            CorruptBlobError: Stored bytes do not match their checksum; names the tensor.
            StorageError: The file cannot be written, or the blob store failed.
        """
        with self._offered():
            return export_set(self._warehouse, self._doc, path, part, overwrite)

    @contextlib.contextmanager
    def _offered(self) -> Iterator[None]:
        try:
            yield
        except CorruptBlobError as error:
            raise CorruptBlobError(f"{error} {suggest_intact_set(self._warehouse, self._doc)}") from error


def parent_id(parent: object, written: str = "parent") -> ObjectId | None:
    """The `_id` of the set that another one is made from.

    Raises:
        SchemaError: It is not a set.
    """
    found = parent.id if isinstance(parent, ParameterSet) else parent
    if found is not None and not isinstance(found, ObjectId):
        raise SchemaError(f"{written} is a set, or the _id of one; found {parent!r}")
    return found


def set_fields(run: str | None, step: int | None, tags: Sequence[str], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The user's fields of a set, checked.

    Raises:
        SchemaError: One is not of the right kind.
        QueryError: A tag is not a non-empty string.
    """
    if run is not None and (not isinstance(run, str) or not run):
        raise SchemaError(f"a run is named by a non-empty string; found {run!r}")
    if step is not None:
        step = scalar("step", step)
        if not isinstance(step, int) or isinstance(step, bool) or step < 0:
            raise SchemaError(f"a step is a number of steps, 0 or more; found {step!r}")
    if isinstance(tags, str):
        raise SchemaError(f"tags is a list of strings; found the string {tags!r}")
    check_names(metrics, RESERVED)
    fields: dict[str, Any] = {"run": run, "step": step, "tags": clean_tags(tags) if tags else []}
    fields.update({name: scalar(name, value) for name, value in metrics.items()})
    return fields
