"""Parameters: sets of tensors, saved at a step of a run, found by a query."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.api.collection import Collection
from tensordb_data.api.frozen.given import check_samples, query_of
from tensordb_data.api.frozen.parameter_set import ParameterSet
from tensordb_data.api.lineage import Lineage, lineage_of
from tensordb_data.api.selection import Selection
from tensordb_data.common.chunks import chunks
from tensordb_data.errors import SchemaError
from tensordb_data.mongo.retry import read_all
from tensordb_data.params.exchange.importing import import_set
from tensordb_data.params.exchange.source import Imported
from tensordb_data.params.lineage import surroundings
from tensordb_data.params.parameter_set import RESERVED, parent_id, set_fields
from tensordb_data.params.prune import Pruned, prune
from tensordb_data.params.retention import Keep
from tensordb_data.params.save import save_parameters
from tensordb_data.params.sizes import SetSize, sizes
from tensordb_data.query.query import Filter, Query
from tensordb_data.schema.schema import PROVENANCE
from tensordb_data.search.index import search_index
from tensordb_data.tensors.snapshot import view
from tensordb_data.time.seen import scored_on, trained_on
from tensordb_data.warehouse.annotation import Annotated, check_ids, check_source
from tensordb_data.warehouse.index import Update
from tensordb_data.warehouse.metrics import check_names, scalar

if TYPE_CHECKING:
    from tensordb_data.api.protocol import Facade

_CHUNK = 5000


class Params(Collection[ParameterSet]):
    """`db.params`: checkpoints. Each is committed as a whole, and its tensors are stored by their content."""

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
        return save_parameters(self._warehouse, view({"model": state}), fields, parent_id(parent)).id

    def import_file(
        self,
        path: str | Path,
        *,
        run: str | None = None,
        step: int | None = None,
        tags: Sequence[str] = (),
        parent: ParameterSet | ObjectId | None = None,
        key: str | None = None,
        **metrics: Any,
    ) -> Imported:
        """Saves the parameters of a file, or of a folder of Hugging Face, as a checkpoint.

        What a file is, its content tells: a safetensors file, a file of `torch.save` (a state dict, or a tree with
        tensors), or a checkpoint of Lightning. From that come the parameters, the optimizers and schedulers as parts of
        their own, and the step. A folder has `model.safetensors` or `pytorch_model.bin`, or the index of several; its
        `config.json` becomes the part `"config"`. Tied tensors stay tied, and dtypes are kept.

        Code that is pickled in a file never runs: torch reads it with `weights_only=True`. The tensors of a file are
        in memory once.

        Args:
            path: The file or folder.
            run: Name of the run.
            step: Step of the run; by default that of the file, if it names one.
            tags: Tags of the checkpoint.
            parent: The checkpoint that this one was made from, of this run or another.
            key: Of a file of `torch.save` that holds more, the entry that has the parameters: `"model_state_dict"`.
            metrics: Numbers and short texts that a query can use: `val_acc=0.91`.

        Returns:
            The `_id` of the checkpoint, and what in the files was left out.

        Raises:
            NotFoundError: There is no such file.
            CheckpointError: It is none of these, or damaged, or holds more than tensors and plain values.
            MissingExtraError: It needs torch.
            SchemaError: A metric, the run, the step or a tag is not of the right kind.
            StorageError: The file cannot be read, or the blob store failed; nothing was saved.
        """

        def fields(found: int | None) -> dict[str, Any]:
            return set_fields(run, found if step is None else step, tags, metrics)

        fields(None)  # what is wrong is said before a large file is read
        return import_set(self._warehouse, path, key, fields, parent_id(parent))

    def annotate(
        self,
        values: Mapping[ObjectId, Mapping[str, Any]],
        source: str,
        *,
        data: Selection[Any] | Query | None = None,
    ) -> Annotated:
        """Adds metrics to checkpoints, for example those of an evaluator. All values are checked before one is set.

        Args:
            values: Metrics by the `_id` of the checkpoint: `{best.id: {"test_acc": 0.9}}`. A metric that the checkpoint
                has already is replaced.
            source: Who annotates. It is noted, with the time, as `provenance.<metric>`.
            data: The samples on which the metrics were found; noted there too, for `scored_on`.

        Returns:
            How many checkpoints were annotated, and the ids that no checkpoint of this project has.

        Raises:
            SchemaError: A metric is not a number, a short text or a list of those, or its name is reserved.
            QueryError: `source` or an id is malformed.
        """
        check_source(source)
        check_ids(values)
        by: dict[str, Any] = {"source": source, "at": dt.datetime.now(dt.timezone.utc)}
        if data is not None:
            by["data"] = query_of(data).to_json()
        updates: list[Update] = []
        for id, given in values.items():
            if not isinstance(given, Mapping) or not given:
                raise SchemaError(f"set {id}: expected a dict of metric to value, found {given!r}")
            check_names(given, RESERVED)
            fields = {name: scalar(name, value) for name, value in given.items()}
            fields.update({f"{PROVENANCE}.{name}": by for name in given})
            updates.append(({"_id": id, "_tdb.p": self._warehouse.project}, {"$set": fields}))
        known = {row["_id"] for row in self._known(list(values))}
        wanted = [each for each in updates if each[0]["_id"] in known]
        index, entries = self._warehouse.index, search_index(self._warehouse, self.name)
        changed = sum(index.transaction(partial(index.update_each, "params", some)) for some in chunks(wanted, _CHUNK))
        worded = [id for id in known if any(isinstance(value, str) for value in values[id].values())]
        for ids in chunks(worded, _CHUNK):
            entries.add_entities(read_all(index["params"].find({"_id": {"$in": ids}})))
        return Annotated(changed, tuple(id for id in values if id not in known))

    def sizes(self, filter: Filter | None = None) -> dict[ObjectId, SetSize]:
        """How many bytes checkpoints take, by their `_id`: in memory, stored for them alone, and shared with others.

        Args:
            filter: Which checkpoints, as for `find`; None for all.
        """
        return sizes(self.find(filter).bound)

    def lineage(self, id: ParameterSet | ObjectId | str) -> Lineage:
        """What a checkpoint comes from, and what comes from it: parents, children, data, and the job that made it.

        Raises:
            NotFoundError: There is no such checkpoint.
            QueryError: `id` is none.
        """
        return lineage_of(self.db, id)

    def trained_on(self, samples: Selection[Any]) -> list[ParameterSet]:
        """The checkpoints that have seen any of some samples, the oldest first.

        What a checkpoint has seen is what `ParameterSet.samples` says. One for which that is not exact counts if what
        stands in for the data has any of the samples.

        Args:
            samples: A Selection of samples, such as a frozen set.

        Raises:
            QueryError: It is none.
        """
        return self.entities(trained_on(check_samples(samples).bound))

    def scored_on(self, samples: Selection[Any]) -> list[ParameterSet]:
        """The checkpoints that have a metric that was found on any of some samples, the oldest first.

        It knows of metrics that were annotated with `data=`. A query is asked again, so that it finds the samples of
        today, unless it is of a frozen set.

        Args:
            samples: A Selection of samples, such as a frozen set.

        Raises:
            QueryError: It is none.
        """
        return self.entities(scored_on(check_samples(samples).bound))

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
        return prune(self._warehouse, run, keep, dry_run=dry_run)

    def _known(self, ids: Sequence[ObjectId]) -> Iterator[Mapping[str, Any]]:
        for some in chunks(ids, _CHUNK):
            named = {"_id": {"$in": list(some)}, "_tdb.p": self._warehouse.project}
            yield from read_all(self._warehouse.index["params"].find(named, {"_id": 1}))
