"""Plan: the index side of a whole selection at one state of the data, held as columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xxhash
from numpy.typing import NDArray

from tensordb_data.stream.plan.index_reader import Pages
from tensordb_data.stream.plan.sample_table import Block, Layouts, compact, concatenate
from tensordb_data.stream.state import Versions

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

    from tensordb_data.warehouse.bound_query import BoundQuery

PAGE = 50_000


@dataclass(frozen=True)
class Plan:
    """Immutable: the same `ids` digest means the same samples in the same order."""

    block: Block
    versions: Versions
    ids: str
    chances: NDArray[np.float64] | None = None
    """Running sums of the samples' weights, where the plan was stored with them."""

    def __len__(self) -> int:
        return len(self.block)


def read_plan(
    selection: BoundQuery, layouts: Layouts, versions: Versions, session: ClientSession | None = None
) -> Plan:
    """Read the references and values of every sample that matches at `versions`, in the order of the query; of the
    moment of a snapshot, if that of the session is one.
    """
    pages = Pages(selection, layouts, versions, PAGE, limit=selection.query.limit, session=session)
    block = compact(concatenate(layouts, list(pages.blocks())))
    return Plan(block, versions, xxhash.xxh3_128_hexdigest(np.ascontiguousarray(block.ids).data))
