"""Bulk: many updates of single documents in few round trips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pymongo import UpdateOne

if TYPE_CHECKING:
    from tensordb_data.api.database import TensorDB

Update = tuple[Mapping[str, Any], Mapping[str, Any]]
"""A filter and what to do with the first document that matches."""


def update_each(db: TensorDB, collection: str, updates: Sequence[Update], session: Any = None) -> int:
    """Carry out updates, in no particular order; returns how many documents were modified."""
    found = db._mongo()[collection]
    if not db._full:  # mongomock has no bulk writes with current drivers
        return sum(found.update_one(*update).modified_count for update in updates)
    return int(found.bulk_write([UpdateOne(*each) for each in updates], ordered=False, session=session).modified_count)
