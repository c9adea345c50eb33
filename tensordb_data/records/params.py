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

    @property
    def lineage(self) -> Mapping[str, Any]:
        """What it was made from.

        `parent` (the set before it, or that the run started from), `code` (script, git commit, whether that was
        changed) and `versions`; from a checkpointer also `model` and `optimizer` (classes), `architecture`, `data`
        (queries with fingerprint, seed and batch size; `Query.from_json` reads them) and `position` in the data.
        """
        return dict(self._doc.get("lineage", {}))

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
        with self._offered():
            return load_parts(self._db, self._doc, [part], framework)[part]

    def load_into(self, model: Any, *, strict: bool = True) -> Difference:
        """Loads the parameters into a torch module or a Keras model.

        Args:
            model: The model.
            strict: Whether all must fit. Otherwise what fits by name and shape (in Keras by order and shape) is
                loaded, and the rest of the model stays as it was.

        Returns:
            What differs: nothing if `strict`.

        Raises:
            StateError: They do not fit; lists missing and unexpected tensors and differing shapes. The model is then
                as it was before.
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
    """`db.params`: sets of tensors, content-addressed, each committed as a whole."""

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
        """Saves a state; durable and visible on return. What the project has stored already is not stored again.

        Args:
            state: Arrays and tensors in nested dicts, lists and tuples, with plain values among them: a torch
                `state_dict()`, Keras `get_weights()`. Never pickled.
            run: Name of the run.
            step: Step of the run. Saving a step again adds a set; the older one stays.
            tags: Tags of the set.
            parent: The set that it was made from, in this run or another.
            metrics: Numbers and short texts to find it by: `val_acc=0.91`.

        Returns:
            The `_id` of the set.

        Raises:
            CheckpointError: The state holds something that cannot be saved; says where.
            SchemaError: A metric, the run, the step or a tag is not of the right kind.
            StorageError: The blob store failed; nothing was saved.
        """
        fields = {**set_fields(run, step, tags, metrics), "lineage": surroundings()}
        return write_set(self._db, view({"model": state}), fields, parent_id(parent)).id

    def annotate(self, values: Mapping[ObjectId, Mapping[str, Any]], source: str) -> Annotated:
        """Attaches metrics to sets that exist: what an evaluator found out later. All or none are accepted.

        Args:
            values: Metrics by the `_id` of the set: `{best.id: {"test_acc": 0.9}}`. One that the set has is replaced.
            source: Who says so; noted with the time as `provenance.<metric>`.

        Returns:
            How many sets were annotated, and the ids that are none of this project.

        Raises:
            SchemaError: A metric is not a number, short text or a list of those, or its name is taken.
            QueryError: `source` or an id is not what it should be.
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
        """Deletes the sets of a run that a policy does not keep, those saved by hand among them.

        What a running checkpointer keeps is up to its own `keep=`; this is for afterwards, and for changing one's mind.
        The bytes go with the next `db.gc()`. A set that is tagged or annotated meanwhile is left alone.

        Args:
            run: The run.
            keep: What stays. The newest set always does.
            dry_run: Only say what would go.

        Returns:
            The sets that stay with the rules that keep them, and those that were (or would be) deleted.

        Raises:
            NotFoundError: The run has no sets.
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
