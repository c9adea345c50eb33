"""Deleting samples: their ids go to the deletion log first."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.query.datasets import selected_datasets
from tensordb_data.samples.changes.before import read_before
from tensordb_data.samples.changes.entries import write_entry
from tensordb_data.samples.mutations import Mutation
from tensordb_data.warehouse.bound_query import BoundQuery
from tensordb_data.warehouse.deletion_log import CHUNK, FIELDS, by_dataset, delete, delete_with_tombstone

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse


def delete_samples(selection: BoundQuery, *, log: bool = True) -> int:
    """Delete the samples of a selection, each with a tombstone.

    Args:
        selection: The samples.
        log: Whether the log of changes names them.

    Raises:
        StorageError: See `delete`.
    """
    warehouse = selection.warehouse
    if not warehouse.index.is_server:
        with Mutation(warehouse, "delete", selected_datasets(selection.query.filter), alone=False) as mutation:
            for dataset, found in by_dataset(list(selection.cursor(FIELDS["data"]))).items():
                if dataset is not None:
                    _log(warehouse, mutation, dataset, found, len(found), None)
            return delete(selection)
    data = selection.collection
    chunks = selection.to_delete(FIELDS["data"], CHUNK)
    first = [chunk for _, chunk in zip(range(2), chunks, strict=False)]
    if not first:
        return 0
    few = {name for name in by_dataset(first[0]) if name is not None}
    names = sorted(few) if len(first) == 1 else selected_datasets(selection.query.filter)

    alone = names is not None and len(names) == len(first) == 1
    count = 0
    with Mutation(warehouse, "delete", names, alone=alone, stamps=log) as mutation:
        for docs in itertools.chain(first, chunks):
            for dataset, some in by_dataset(docs).items():
                named = {doc["_id"]: doc for doc in some}

                def change(
                    ids: Sequence[ObjectId],
                    session: Any,
                    dataset: str | None = dataset,
                    named: Mapping[ObjectId, Mapping[str, Any]] = named,
                ) -> int:
                    where = selection.of_ids(ids)
                    there = read_before(data, where, (), session, len(ids)).ids if log else ()
                    gone = int(data.delete_many(where, session=session).deleted_count)
                    if there and dataset is not None:
                        _log(warehouse, mutation, dataset, [named[id] for id in there], gone, session)
                    return gone

                def step(ids: list[ObjectId], change: Callable[[Sequence[ObjectId], Any], int] = change) -> int:
                    return mutation.step(ids, change)

                count += delete_with_tombstone(warehouse, "data", some, step, dataset)
    return count


def _log(
    warehouse: Warehouse,
    mutation: Mutation,
    dataset: str,
    docs: Sequence[Mapping[str, Any]],
    count: int,
    session: Any,
) -> None:
    """Note in the log that samples are deleted, with their sequence numbers."""
    if docs:
        write_entry(
            warehouse, dataset, "delete", number=mutation.numbers.get(dataset), count=count, session=session,
            at=mutation.at(dataset), ids=[doc["_id"] for doc in docs], sequence=[int(doc["_tdb"]["s"]) for doc in docs],
        )  # fmt: skip
