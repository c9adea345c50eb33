"""Parameters: sets of tensors, saved at a step of a run, found by a query."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.api.collection import Collection
from tensordb_data.errors import SchemaError
from tensordb_data.params.lineage import surroundings
from tensordb_data.params.parameter_set import RESERVED, ParameterSet, parent_id, set_fields
from tensordb_data.params.prune import Pruned, prune
from tensordb_data.params.retention import Keep
from tensordb_data.params.save import write_set
from tensordb_data.schema.schema import PROVENANCE
from tensordb_data.search.index import search_index
from tensordb_data.tensors.snapshot import view
from tensordb_data.warehouse.annotation import Annotated, check_ids, check_source
from tensordb_data.warehouse.index import Update
from tensordb_data.warehouse.metrics import check_names, scalar

if TYPE_CHECKING:
    from tensordb_data.api.protocol import Facade


class Params(Collection[ParameterSet]):
    """`db.params`: sets of tensors, content-addressed, each committed as a whole."""

    def __init__(self, db: Facade) -> None:
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
        return write_set(self._warehouse, view({"model": state}), fields, parent_id(parent)).id

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
            updates.append(({"_id": id, "_tdb.p": self._warehouse.project}, {"$set": fields}))
        known = {row["_id"] for row in self._known(list(values))}
        changed = self._warehouse.index.update_each("params", [each for each in updates if each[0]["_id"] in known])
        worded = [id for id in known if any(isinstance(value, str) for value in values[id].values())]
        search_index(self._warehouse, self.name).add_entities(
            self._warehouse.index["params"].find({"_id": {"$in": worded}})
        )
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
        return prune(self._warehouse, run, keep, dry_run=dry_run)

    def _known(self, ids: Sequence[ObjectId]) -> Iterator[Mapping[str, Any]]:
        return iter(
            self._warehouse.index["params"].find({"_id": {"$in": ids}, "_tdb.p": self._warehouse.project}, {"_id": 1})
        )
