"""FrozenPlanReader: the plan of a frozen set, from its blobs. It is the same for ever, so nothing is read anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from tensordb_data.errors import BusyError
from tensordb_data.frozen.bound_query import FrozenQuery
from tensordb_data.frozen.columns import TAGS, Block, Values, no_refs
from tensordb_data.frozen.frozen_set import FrozenSet, open_set
from tensordb_data.schema.schema import stored_doc
from tensordb_data.stream.passes.plan_reader import PlanReader
from tensordb_data.stream.plan.cache import PlanCache, PlanKey
from tensordb_data.stream.plan.index_snapshot import IndexSnapshot
from tensordb_data.stream.plan.plan import Plan, plan_of
from tensordb_data.stream.plan.sample_table import FieldLayout, SampleTable, objects

if TYPE_CHECKING:
    from tensordb_data.stream.spec import StreamSpec
    from tensordb_data.stream.state import Versions
    from tensordb_data.warehouse.context import Warehouse

T = TypeVar("T")


def plan_reader(warehouse: Warehouse, spec: StreamSpec) -> PlanReader:
    """What reads the plans of a stream."""
    return (PlanReader if spec.query.frozen is None else FrozenPlanReader)(warehouse, spec)


class FrozenPlanReader(PlanReader):
    """Reads the plan of a stream over a frozen set. See `PlanReader`."""

    @property
    def bound_query(self) -> FrozenQuery:
        return FrozenQuery(self.warehouse, self._spec.query)

    @property
    def _set(self) -> FrozenSet:
        assert self._spec.query.frozen is not None
        return open_set(self.warehouse, self._spec.query.frozen)

    def versions(self) -> Versions:
        return self._set.structure.versions

    def layout(self, versions: Versions) -> FieldLayout:
        return self._layout(self._set.schemas)

    def newest(self, known: Plan | None, also: Callable[[Plan, IndexSnapshot], None]) -> Plan:
        return known if known is not None and known.versions == self.versions() else self.at(self.versions())

    def read_now(self, read: Callable[[IndexSnapshot, FieldLayout], T]) -> T:
        found = self._set
        docs: dict[str, dict[str, Any]] = {
            name: {"seq": pair[0], "mut": pair[1], "schema": stored_doc(found.schemas.get(name))}
            for name, pair in found.structure.versions.items()
        }
        return read(IndexSnapshot(self.warehouse, docs), self._layout(found.schemas))

    def cached_before(self, error: BusyError) -> Plan | None:
        return None

    def at(self, versions: Versions, layout: FieldLayout | None = None) -> Plan:
        layout = layout or self.layout(versions)
        kept = self.cached(layout, versions)
        if kept is not None:
            return kept
        found = self._set
        plan = plan_of(table_of(found, layout, self._spec.query.limit), found.structure.versions)
        self.keep(plan)
        return plan

    def read(self, layout: FieldLayout, versions: Versions, now: IndexSnapshot) -> Plan:
        return self.at(versions, layout)

    def keep(self, plan: Plan, now: IndexSnapshot | None = None) -> None:
        if (folder := self.warehouse.cache_dir) is not None:
            PlanCache(folder / "plans").store(self._key(plan.table.layout), plan)

    def cached(self, layout: FieldLayout, versions: Versions, now: IndexSnapshot | None = None) -> Plan | None:
        folder = self.warehouse.cache_dir
        return None if folder is None else PlanCache(folder / "plans").open(self._key(layout).exact, layout)

    def _key(self, layout: FieldLayout) -> PlanKey:
        found, limit = self._set, self._spec.query.limit
        content = ["frozen", str(found.id), found.doc["_tdb"]["structure"].hex(), layout.fields, limit]
        digest = hashlib.sha256(json.dumps([self.warehouse.project, *content]).encode()).hexdigest()[:32]
        return PlanKey(digest, digest)


def table_of(found: FrozenSet, layout: FieldLayout, limit: int | None = None) -> SampleTable:
    """The samples of a frozen set as a table of a plan.

    Args:
        found: The set.
        layout: The fields.
        limit: Only so many samples, the first ones.
    """
    blobs = [name for name in layout.fields if layout.is_blob(name)]
    values = [name for name in layout.fields if name not in blobs]
    blocks = list(found.blocks(values, blobs, limit=limit, at_once=16))
    if not blocks:
        blocks = [
            Block(
                np.zeros((0, 12), np.uint8), (), np.zeros(0, np.uint16),
                {name: Values.nothing(0) for name in found.values if name in values},
                {name: no_refs(0) for name in found.blobs if name in blobs},
            )
        ]  # fmt: skip
    block = Block.joined(blocks)
    m = len(block)
    columns: dict[str, NDArray[Any]] = {}
    for name in values:
        if name == "_id":
            columns[name] = objects([ObjectId(id.tobytes()) for id in block.ids])
        elif name == "dataset":
            columns[name] = objects([block.datasets[number] for number in block.dataset.tolist()])
        elif name == TAGS:
            columns[name] = objects([list(tags or ()) for tags in block.values[name].items()])
        else:
            columns[name] = block.values.get(name, Values.nothing(m)).plain()
    refs = {name: block.refs[name] if name in block.refs else no_refs(m) for name in blobs}
    return SampleTable(layout, block.ids, block.datasets, block.dataset, refs, columns)
