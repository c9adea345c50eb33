"""Deleting samples: their ids go to the deletion log first."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from bson import ObjectId

from tensordb_data.query.datasets import selected_datasets
from tensordb_data.samples.mutations import Mutation
from tensordb_data.warehouse.bound_query import BoundQuery
from tensordb_data.warehouse.deletion_log import CHUNK, FIELDS, by_dataset, delete, delete_with_tombstone


def delete_samples(selection: BoundQuery) -> int:
    """Delete the samples of a selection, each with a tombstone.

    Raises:
        StorageError: See `delete`.
    """
    warehouse = selection.warehouse
    if not warehouse.index.is_server:
        with Mutation(warehouse, "delete", selected_datasets(selection.query.filter), alone=False):
            return delete(selection)
    data = selection.collection
    chunks = selection.to_delete(FIELDS["data"], CHUNK)
    first = [chunk for _, chunk in zip(range(2), chunks, strict=False)]
    if not first:
        return 0
    few = {name for name in by_dataset(first[0]) if name is not None}
    names = sorted(few) if len(first) == 1 else selected_datasets(selection.query.filter)

    def change(ids: Sequence[ObjectId], session: Any) -> int:
        return int(data.delete_many(selection.of_ids(ids), session=session).deleted_count)

    count = 0
    with Mutation(warehouse, "delete", names, alone=names is not None and len(names) == len(first) == 1) as mutation:
        for docs in itertools.chain(first, chunks):
            for dataset, some in by_dataset(docs).items():
                count += delete_with_tombstone(warehouse, "data", some, lambda ids: mutation.step(ids, change), dataset)
    return count
