"""Write columns into samples that exist: values of the index, and blobs, by few commands and in one mutation.

All blobs are durable before the first sample refers to one. So whatever fails until then, nothing was changed. Each
transaction gives up to 10,000 samples their new values, and declares the segment live that has their blobs. A reader
sees all of it or nothing, as of any mutation.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.blobs.segments.references import is_reference, references_of
from tensordb_data.common.chunks import chunks
from tensordb_data.errors import StorageError
from tensordb_data.mongo.retry import read_all
from tensordb_data.samples.changes.each import logged_updates
from tensordb_data.samples.columns import Column
from tensordb_data.samples.encode.segment import drop_segment, put_segment
from tensordb_data.samples.existing.replaced import new_reference, note_replaced
from tensordb_data.samples.mutations import LIMIT, Mutation, are_few
from tensordb_data.samples.renamed import check_not_renamed
from tensordb_data.samples.write_batch import WriteBatch
from tensordb_data.schema.schema import PROVENANCE, Schema
from tensordb_data.warehouse.index import Update

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_CHUNK = 5000

Doc = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class NewValues:
    """New values of some samples of one dataset.

    Args:
        dataset: The dataset.
        schema: Its schema, which has the fields.
        ids: The samples, all different.
        columns: The encoded values, from `encode_columns`, one for each sample; without one, the sample has no value
            in this field afterwards.
    """

    dataset: str
    schema: Schema
    ids: Sequence[ObjectId]
    columns: Mapping[str, Column]


@dataclasses.dataclass(frozen=True)
class _Step:
    """What one transaction changes, or two halves of it."""

    dataset: str
    fields: tuple[str, ...]
    blobs: tuple[str, ...]
    """Those of the fields that are blobs."""
    segment: ObjectId | None
    """The segment that has the blobs, which is durable."""
    samples: Sequence[Doc]
    """`_id`, values and references."""


def write_columns(
    warehouse: Warehouse, values: Sequence[NewValues], kind: str, provenance: Mapping[str, Any] | None = None
) -> int:
    """Give samples new values.

    Args:
        warehouse: The warehouse.
        values: The values, each sample in one of them.
        kind: What it is called while it takes place, such as "annotate".
        provenance: Who has found the values, and when; None if that is not to be noted, and no longer is.

    Returns:
        How many samples were changed. Those that are not there any more were not.

    Raises:
        SchemaError: A value does not fit its field, and nothing was changed; or a field was renamed meanwhile.
        StorageError: The blob store failed; nothing was changed.
    """
    steps: list[_Step] = []
    try:
        for some in values:
            steps.extend(_stored(warehouse, some))  # one by one, so that those before an error are known
    except BaseException:
        for step in steps:
            if step.segment is not None:
                drop_segment(warehouse, step.segment)
        raise
    changed = 0
    if steps:
        names, count = {step.dataset for step in steps}, sum(len(step.samples) for step in steps)
        few = are_few(warehouse, count, names)
        with Mutation(warehouse, kind, names, alone=len(steps) == 1, stamps=few) as mutation:
            for step in steps:
                changed += mutation.step(step.samples, _Change(warehouse, mutation, step, kind, provenance))
    return changed


def _stored(warehouse: Warehouse, values: NewValues) -> Iterator[_Step]:
    """Make the blobs durable, in segments of about 32 MB; yields the steps to be taken."""
    blobs = tuple(name for name, column in values.columns.items() if column.field.is_blob)
    start, n = 0, len(values.ids)
    while start < n:
        batch = WriteBatch(warehouse.project, values.dataset, values.schema, None, most=LIMIT)
        while start < n and not batch.full:
            rows = slice(start, min(n, start + batch.room(values.columns)))
            run = {name: column[rows] for name, column in values.columns.items()}
            batch.add_columns(values.ids[rows], itertools.repeat([], rows.stop - start), run)
            start = rows.stop
        samples, segment = batch.docs, batch.segment_id if batch.has_segment else None
        if segment is not None:
            warehouse.index.check_place()
            whole = _whole(warehouse, samples, values.columns)
            put_segment(warehouse, values.dataset, segment, batch.builder, whole, len(whole))
        yield _Step(values.dataset, tuple(values.columns), blobs, segment, samples)


def _whole(warehouse: Warehouse, samples: Sequence[Doc], columns: Mapping[str, Column]) -> list[Doc]:
    """The samples as they will be. A segment has them, so that the index can be rebuilt from it."""
    given = {doc["_id"]: doc for doc in samples}
    found: list[Doc] = []
    for ids in chunks(list(given), _CHUNK):
        mine = {"_id": {"$in": list(ids)}, "_tdb.p": warehouse.project}
        for before in read_all(warehouse.index["data"].find(mine)):
            after = given[before["_id"]]
            kept = {name: value for name, value in before.items() if name not in columns}
            scalars = {name: after[name] for name in columns if name in after}
            parts = {name: part for name, part in references_of(before).items() if name not in columns}
            internals = {**before["_tdb"], "b": {**parts, **references_of(after)}}
            found.append({**kept, **scalars, "_tdb": internals})
    return found


class _Change:
    """Changes the samples of a step, or some of them, within a transaction. It may run several times."""

    def __init__(
        self,
        warehouse: Warehouse,
        mutation: Mutation,
        step: _Step,
        kind: str,
        provenance: Mapping[str, Any] | None,
    ) -> None:
        self._warehouse, self._mutation, self._step = warehouse, mutation, step
        self._kind, self._provenance = kind, provenance

    def __call__(self, samples: Sequence[Doc], session: Any) -> int:
        warehouse, step = self._warehouse, self._step
        check_not_renamed(warehouse, [step.dataset], step.fields, session)
        counter = warehouse.index["datasets"].find_one(
            {"_id": warehouse.datasets.id(step.dataset)}, {"mut": 1}, session=session
        )
        if counter is None:  # dropped, with its samples
            return 0
        before = self._before(samples, session)
        updates = [
            self._update(doc, before[doc["_id"]], int(counter["mut"])) for doc in samples if doc["_id"] in before
        ]
        if not updates:
            return 0
        replaced = (part for parts in before.values() for part in parts.values())
        note_replaced(warehouse, replaced, int(counter["mut"]), session)
        if step.segment is not None:
            # As in a commit: if a gc removes the segment now, the two writes of `state` conflict.
            there = {"_id": step.segment, "state": {"$in": ["writing", "live", "dying"]}}
            lives = {"$set": {"state": "live"}, "$unset": {"dying": ""}}
            if not warehouse.index["segments"].update_one(there, lives, session=session).matched_count:
                raise StorageError(
                    f"dataset {step.dataset!r}: writing took so long that a gc has removed new blobs, and samples were"
                    " left as they were: write fewer at once, or give gc a longer grace period"
                )
        of = dict.fromkeys(before, step.dataset)
        source = None if self._provenance is None else self._provenance["source"]
        return logged_updates(warehouse, self._mutation, updates, of, step.fields, self._kind, source, session)

    def _before(self, samples: Sequence[Doc], session: Any) -> dict[ObjectId, dict[str, Doc]]:
        """The references that the samples have in the fields that change. Reads see one state of the data here."""
        mine = {"_id": {"$in": [doc["_id"] for doc in samples]}, "_tdb.p": self._warehouse.project}
        wanted = {"_id": 1, **{f"_tdb.b.{name}": 1 for name in self._step.blobs}}
        found: dict[ObjectId, dict[str, Doc]] = {}
        for doc in self._warehouse.index["data"].find(mine, wanted, session=session):
            parts = references_of(doc)
            found[doc["_id"]] = {name: dict(part) for name, part in parts.items() if is_reference(part)}
        return found

    def _update(self, doc: Doc, before: Mapping[str, Doc], mutation: int) -> Update:
        to_set: Doc = {}
        to_unset: Doc = {}
        references = references_of(doc)
        for name in self._step.fields:
            path = f"_tdb.b.{name}" if name in self._step.blobs else name
            if name in references:
                to_set[path] = new_reference(references[name], before.get(name), mutation)
            elif name in doc:
                to_set[path] = doc[name]
            else:
                to_unset[path] = ""
            if self._provenance is None:
                to_unset[f"{PROVENANCE}.{name}"] = ""
            else:
                to_set[f"{PROVENANCE}.{name}"] = self._provenance
        update = {operator: changes for operator, changes in (("$set", to_set), ("$unset", to_unset)) if changes}
        return {"_id": doc["_id"], "_tdb.p": self._warehouse.project}, update
