"""Parameters: sets of tensors, saved at a step of a run, found by a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.checkpoint.apply import apply_to
from tensordb_data.checkpoint.leaves import Framework
from tensordb_data.checkpoint.load import describe, load_parts
from tensordb_data.checkpoint.persist import write_set
from tensordb_data.checkpoint.snapshot import view
from tensordb_data.errors import SchemaError
from tensordb_data.query import Query
from tensordb_data.records.base import Collection, Record
from tensordb_data.records.scalars import check_names, scalar
from tensordb_data.selection import clean_tags

if TYPE_CHECKING:
    from tensordb_data.warehouse import TensorDB

RESERVED = frozenset(("_id", "_tdb", "run", "step", "tags", "created"))


class ParameterSet(Record):
    """A saved set of parameters, with the metrics it was saved with: `best["val_acc"]`."""

    __slots__ = ()

    @property
    def run(self) -> str | None:
        """The run that saved it, None if none was named."""
        found: str | None = self._doc.get("run")
        return found

    @property
    def step(self) -> int | None:
        """The step after which it was saved, None if none was named."""
        found: int | None = self._doc.get("step")
        return found

    @property
    def query(self) -> Query:
        """The query that names exactly this set: plain data, to store in a job or a configuration."""
        return Query("params", {"_id": self.id})

    @property
    def parts(self) -> list[str]:
        """What was saved: `["model"]`, and for a training state `optimizer`, `rng`, `stream` and more."""
        return list(self._doc["_tdb"]["parts"])

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors, whether they share storage with other sets or not."""
        return int(self._doc["_tdb"]["bytes"])

    def load(self, part: str = "model", *, framework: Framework = "auto") -> Any:
        """The parameters, in the structure in which they were saved; every tensor is checked.

        What was saved from torch comes back as torch tensors on the CPU if torch has been imported, so that
        `model.load_state_dict(best.load())` works, and as numpy arrays otherwise. Everything is a copy of your own.

        Args:
            part: One of `parts`.
            framework: `"auto"`, or `"numpy"` or `"torch"` for all tensors alike.

        Raises:
            CorruptBlobError: Stored bytes do not match their checksum; names the tensor.
            CheckpointError: There is no such part, or it is not complete.
            StorageError: The blob store failed.
        """
        return load_parts(self._db, self._doc, [part], framework)[part]

    def load_into(self, model: Any) -> None:
        """Loads the parameters into a torch module or a Keras model.

        Raises:
            StateError: They do not fit; lists missing and unexpected tensors and differing shapes. The model is then
                as it was before.
            CorruptBlobError: Stored bytes do not match their checksum; names the tensor.
        """
        apply_to(model, self.load(), describe(self._doc))


class Params(Collection[ParameterSet]):
    """`db.params`: sets of tensors, content-addressed, each committed as a whole."""

    def __init__(self, db: TensorDB) -> None:
        super().__init__(db, "params", ParameterSet)

    def save(
        self, state: Any, *, run: str | None = None, step: int | None = None, tags: Sequence[str] = (), **metrics: Any
    ) -> ObjectId:
        """Saves a state; durable and visible on return. What the project has stored already is not stored again.

        Args:
            state: Arrays and tensors in nested dicts, lists and tuples, with plain values among them: a torch
                `state_dict()`, Keras `get_weights()`. Never pickled.
            run: Name of the run.
            step: Step of the run. Saving a step again adds a set; the older one stays.
            tags: Tags of the set.
            metrics: Numbers and short texts to find it by: `val_acc=0.91`.

        Returns:
            The `_id` of the set.

        Raises:
            CheckpointError: The state holds something that cannot be saved; says where.
            SchemaError: A metric, the run, the step or a tag is not of the right kind.
            StorageError: The blob store failed; nothing was saved.
        """
        fields = set_fields(run, step, tags, metrics)
        return write_set(self._db, view({"model": state}), fields).id


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
