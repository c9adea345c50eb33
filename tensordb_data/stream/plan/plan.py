"""Plan: the references and index values of all samples of a selection, at one state of the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import xxhash
from numpy.typing import NDArray

from tensordb_data.stream.plan.index_reader import IndexReader
from tensordb_data.stream.plan.sample_table import FieldLayout, SampleTable, compact, concatenate
from tensordb_data.stream.state import Versions

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

    from tensordb_data.warehouse.bound_query import BoundQuery

PAGE = 50_000


@dataclass(frozen=True)
class Plan:
    """An immutable plan. Two plans with the same digest `ids` have the same samples in the same order."""

    table: SampleTable
    versions: Versions
    ids: str
    cumulative_weights: NDArray[np.float64] | None = None
    """float64 [n]: running sums of the weights, if the plan was stored with them."""
    lengths: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    """int64 [n]: the lengths of the samples by the field that says so, if the plan was stored with them."""
    since: Mapping[str, int] = field(default_factory=dict)
    """For a dataset of which a mutation was open when the plan was read, the last one before the oldest of these."""

    def __len__(self) -> int:
        return len(self.table)


def read_plan(
    bound_query: BoundQuery, layout: FieldLayout, versions: Versions, session: ClientSession | None = None
) -> Plan:
    """Read the references and values of every sample that matches, in the order of the query.

    Args:
        bound_query: The query.
        layout: The fields.
        versions: Only samples up to these versions are read.
        session: The session of a snapshot, so that all samples are of one moment.
    """
    query = bound_query.query
    pages = IndexReader(bound_query, layout, versions, PAGE, limit=query.limit, session=session)
    table = concatenate(layout, list(pages.tables()))
    if query.sort or query.limit is not None:  # nothing is ever put between these samples
        table = replace(table, sequence=None)
    return plan_of(table, versions)


def plan_of(table: SampleTable, versions: Versions) -> Plan:
    """The plan of some samples, in as little memory as possible."""
    table = compact(table)
    return Plan(table, versions, xxhash.xxh3_128_hexdigest(np.ascontiguousarray(table.ids).data))
