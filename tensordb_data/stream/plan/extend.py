"""Extend: a plan to which samples were added. Only these are read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tensordb_data.stream.plan.index_reader import IndexReader
from tensordb_data.stream.plan.plan import PAGE, Plan, plan_of
from tensordb_data.stream.plan.sample_table import SampleTable, concatenate
from tensordb_data.stream.state import Versions

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

    from tensordb_data.warehouse.bound_query import BoundQuery


def can_extend(before: Versions, now: Versions) -> bool:
    """Whether a plan of some versions is the beginning of the plan of now: samples were added, and that is all."""
    return before.keys() == now.keys() and all(
        before[name][1] == mutation and before[name][0] <= sequence for name, (sequence, mutation) in now.items()
    )


def extended_plan(
    before: Plan, bound_query: BoundQuery, versions: Versions, session: ClientSession | None = None
) -> Plan:
    """The plan of now, from an earlier one. It is the same as one that is read as a whole.

    Args:
        before: The earlier plan; see `can_extend`.
        bound_query: Its query, without a sort or a limit.
        versions: The versions of now.
        session: The session of a snapshot, so that all samples are of one moment.
    """
    layout = before.table.layout
    grown = {name: pair for name, pair in versions.items() if pair[0] > before.versions[name][0]}
    pages = IndexReader(bound_query, layout, grown, PAGE, session=session, since=before.versions)
    added = list(pages.tables())
    if not added:
        return replace(before, versions=versions)
    plan = replace(plan_of(in_order(concatenate(layout, [before.table, *added])), versions), since=before.since)
    if len(plan.table.datasets) == 1:
        for name, refs in plan.table.refs.items():
            refs.take_checks_from(before.table.refs[name])
    return plan


def in_order(table: SampleTable) -> SampleTable:
    """The samples of each dataset together, as a query without a sort has them."""
    if len(table.datasets) == 1:
        return table
    ranks = np.argsort(np.argsort(np.array(table.datasets, object)))[table.dataset]
    return whole_rows(table, np.argsort(ranks, kind="stable"))


def whole_rows(table: SampleTable, rows: NDArray[np.int64]) -> SampleTable:
    """The samples at `rows`, as a table of its own, with their sequence numbers."""
    taken = table.take(rows)
    sequence = None if table.sequence is None else table.sequence[rows]
    return replace(taken, all_ids=taken.ids, rows=None, sequence=sequence)
