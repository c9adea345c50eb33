"""Parameters: sets of tensors, saved at a step of a run, found by a query."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.checkpoint.apply import Difference, apply_to
from tensordb_data.checkpoint.in_place import load_in_place
from tensordb_data.checkpoint.keep import Keep
from tensordb_data.checkpoint.leaves import Framework
from tensordb_data.checkpoint.lineage import surroundings
from tensordb_data.checkpoint.load import describe, load_parts, offer
from tensordb_data.checkpoint.persist import write_set
from tensordb_data.checkpoint.prune import Pruned, prune
from tensordb_data.checkpoint.snapshot import view
from tensordb_data.errors import CorruptBlobError, SchemaError
from tensordb_data.query import Query
from tensordb_data.records.annotate import Annotated, check_ids, check_source
from tensordb_data.records.base import Collection, Record
from tensordb_data.records.bulk import Update, update_each
from tensordb_data.records.scalars import check_names, scalar
from tensordb_data.records.schema import PROVENANCE
from tensordb_data.selection import clean_tags

if TYPE_CHECKING:
    from tensordb_data.warehouse import TensorDB

RESERVED = frozenset(("_id", "_tdb", "run", "step", "tags", "created", "lineage", PROVENANCE))


class ParameterSet(Record):
    """A checkpoint: saved parameters, and the metrics that they were saved with: `best["val_acc"]`."""

    __slots__ = ()

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
            return load_parts(self._db, self._doc, [part], framework)[part]

    def load_into(self, model: Any, *, strict: bool = True) -> Difference:
        """Loads the parameters into a torch module or a Keras model.

        Args:
            model: The model.
            strict: Whether all tensors must fit. With False, the tensors that fit by name and shape (in Keras by
                order and shape) are loaded, and the rest of the model stays as it was.

        Returns:
            What differs; nothing if `strict`.

        Raises:
            StateError: The parameters do not fit. The message lists missing and unexpected tensors and different
                shapes. The model is as it was before.
            CorruptBlobError: Stored bytes do not match their checksum; names the tensor.
        """
        with self._offered():
            if strict and load_in_place(self._db, self._doc, model):
                return Difference()
        return apply_to(model, self.load(), describe(self._doc), strict)

    @contextlib.contextmanager
    def _offered(self) -> Iterator[None]:
        try:
            yield
        except CorruptBlobError as error:
            raise CorruptBlobError(f"{error} {offer(self._db, self._doc)}") from error


class Params(Collection[ParameterSet]):
    """`db.params`: checkpoints. Each is committed as a whole, and its tensors are stored by their content."""

    def __init__(self, db: TensorDB) -> None:
        super().__init__(db, "params", ParameterSet)

    def save(
        self,
        state: Any,
        *,
        run: str | None = None,
        step: int | None = None,
        tags: Sequence[str] = (),
        parent: ParameterSet | ObjectId | None = None,
        **metrics: Any,
    ) -> ObjectId:
        """Saves a state as a checkpoint. On return it is durable and visible.

        Tensors that the project has stored already are not stored again.

        Args:
            state: Arrays and tensors in nested dicts, lists and tuples, with plain values among them: a torch
                `state_dict()`, Keras `get_weights()`. Nothing is pickled.
            run: Name of the run.
            step: Step of the run. If the step was saved before, this adds a checkpoint; the older one stays.
            tags: Tags of the checkpoint.
            parent: The checkpoint that this one was made from, of this run or another.
            metrics: Numbers and short texts that a query can use: `val_acc=0.91`.

        Returns:
            The `_id` of the checkpoint.

        Raises:
            CheckpointError: The state holds something that cannot be saved; says where.
            SchemaError: A metric, the run, the step or a tag is not of the right kind.
            StorageError: The blob store failed; nothing was saved.
        """
        fields = {**set_fields(run, step, tags, metrics), "lineage": surroundings()}
        return write_set(self._db, view({"model": state}), fields, parent_id(parent)).id

    def annotate(self, values: Mapping[ObjectId, Mapping[str, Any]], source: str) -> Annotated:
        """Adds metrics to checkpoints, for example those of an evaluator. All values are checked before one is set.

        Args:
            values: Metrics by the `_id` of the checkpoint: `{best.id: {"test_acc": 0.9}}`. A metric that the checkpoint
                has already is replaced.
            source: Who annotates. It is noted, with the time, as `provenance.<metric>`.

        Returns:
            How many checkpoints were annotated, and the ids that no checkpoint of this project has.

        Raises:
            SchemaError: A metric is not a number, a short text or a list of those, or its name is reserved.
            QueryError: `source` or an id is malformed.
        """
        check_source(source)
        check_ids(values)
        by = {"source": source, "at": dt.datetime.now(dt.timezone.utc)}
        updates: list[Update] = []
        for id, given in values.items():
            if not isinstance(given, Mapping) or not given:
                raise SchemaError(f"set {id}: expected a dict of metric to value, found {given!r}")
            check_names(given, RESERVED)
            fields = {name: scalar(name, value) for name, value in given.items()}
            fields.update({f"{PROVENANCE}.{name}": by for name in given})
            updates.append(({"_id": id, "_tdb.p": self._db.project}, {"$set": fields}))
        known = {row["_id"] for row in self._known(list(values))}
        changed = update_each(self._db, "params", [each for each in updates if each[0]["_id"] in known])
        worded = [id for id in known if any(isinstance(value, str) for value in values[id].values())]
        self._entries.add_entities(self._db._mongo()["params"].find({"_id": {"$in": worded}}))
        return Annotated(changed, tuple(id for id in values if id not in known))

    def prune(self, run: str, keep: Keep, *, dry_run: bool = False) -> Pruned:
        """Deletes the checkpoints of a run that a policy does not keep, also those saved by `save`.

        A running checkpointer follows its own `keep=`. Use this method afterwards, or to apply another policy. The next
        `db.gc()` removes the bytes. A checkpoint that is tagged or annotated during the call stays.

        Args:
            run: The run.
            keep: Which checkpoints stay. The newest one always stays.
            dry_run: Delete nothing; only report which checkpoints would be deleted.

        Returns:
            The checkpoints that stay, with the rules that keep them, and those that were (or would be) deleted.

        Raises:
            NotFoundError: The run has no checkpoints.
        """
        return prune(self._db, run, keep, dry_run=dry_run)

    def _known(self, ids: Sequence[ObjectId]) -> Iterator[Mapping[str, Any]]:
        return iter(self._db._mongo()["params"].find({"_id": {"$in": ids}, "_tdb.p": self._db.project}, {"_id": 1}))


def parent_id(parent: object) -> ObjectId | None:
    """The `_id` of the set that another one is made from.

    Raises:
        SchemaError: It is not a set.
    """
    found = parent.id if isinstance(parent, ParameterSet) else parent
    if found is not None and not isinstance(found, ObjectId):
        raise SchemaError(f"parent is a set, or the _id of one; found {parent!r}")
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
