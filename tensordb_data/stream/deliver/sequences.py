"""Sequences: which samples, or pieces of samples, a task delivers, and where they go in their batches."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tensordb_data.stream.order.items import Items
from tensordb_data.stream.order.sequence_order import SequenceOrder
from tensordb_data.stream.order.sharding import BatchRange
from tensordb_data.stream.plan.plan import Plan
from tensordb_data.stream.plan.sample_table import FieldLayout
from tensordb_data.stream.spec import StreamSpec
from tensordb_data.stream.transform.packing import Documents, Packing, single_fields


@dataclass(frozen=True)
class Sequences:
    """What a task delivers, if its batches are made of sequences."""

    order: SequenceOrder
    """The order of the pass."""
    positions: NDArray[np.int64]
    """int64 [m]: those of the items, one batch after the other."""
    items: Items
    """The m items."""
    packing: Packing | None
    """How they are packed, if they are."""

    @classmethod
    def of(cls, order: SequenceOrder, layout: FieldLayout, spec: StreamSpec, positions: NDArray[np.int64]) -> Sequences:
        """What a task delivers at some positions, which ascend."""
        size = order.tokens.pack
        packing = None if size is None else Packing(size, single_fields(layout), spec.ragged)
        return cls(order, positions, order.take(positions), packing)

    def documents(self, range_: BatchRange, kept: NDArray[np.int64] | None) -> Documents:
        """The places of the samples of a batch.

        Args:
            range_: The batch.
            kept: Which of its samples were loaded. None if another one stands in for all of them.
        """
        first = int(np.searchsorted(self.positions, range_.low))
        mine = np.arange(first, first + range_.high - range_.low)
        row = self.order.unit_of(self.positions[mine])
        rows = int(row[-1]) + 1
        if kept is not None:
            return Documents(row, self.items.take(mine), rows).take(kept)
        tokens, none = self.order.tokens, np.zeros(1, np.int64)
        length = np.array([tokens.most])
        whole = np.array([2**62]) if tokens.long in ("cut", "split") else length
        return Documents(none, Items(none, none, length, whole), rows)

    def substitutes(self, plan: Plan) -> Plan:
        """The samples of a plan that can stand in for others: those that the pass delivers."""
        return replace(plan, table=plan.table.take(np.unique(self.order.items.rows)))
