"""Plan: the index side of a whole selection at one state of the data, held as columns."""

from __future__ import annotations

from dataclasses import dataclass
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
    """Immutable: the same `ids` digest means the same samples in the same order."""

    table: SampleTable
    versions: Versions
    ids: str
    cumulative_weights: NDArray[np.float64] | None = None
    """Running sums of the samples' weights, where the plan was stored with them."""

    def __len__(self) -> int:
        return len(self.table)


def read_plan(
    bound_query: BoundQuery, layout: FieldLayout, versions: Versions, session: ClientSession | None = None
) -> Plan:
    """Read the references and values of every sample that matches at `versions`, in the order of the query; of the
    moment of a snapshot, if that of the session is one.
    """
    pages = IndexReader(bound_query, layout, versions, PAGE, limit=bound_query.query.limit, session=session)
    table = compact(concatenate(layout, list(pages.tables())))
    return Plan(table, versions, xxhash.xxh3_128_hexdigest(np.ascontiguousarray(table.ids).data))
