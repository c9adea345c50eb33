"""Feedback of samples that were deleted."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from tensordb_data.errors import BusyError, StorageError
from tensordb_data.feedback.store import all_numbers, merge_chunks, read_moments
from tensordb_data.mongo.retry import read_all

if TYPE_CHECKING:
    from tensordb_data.feedback.moments import Ids
    from tensordb_data.warehouse.context import Warehouse

log = logging.getLogger("tensordb_data.gc")

_LOOK = 10_000


def drop_feedback_of_deleted(warehouse: Warehouse, dry_run: bool) -> int:
    """Remove the feedback of samples that do not exist any more, in all projects.

    Feedback that another process merges at the same moment is left for the next call, and what is damaged stays.

    Returns:
        How many samples, counted for each number of each run.
    """
    removed = 0
    for project in sorted(p for p in warehouse.index["feedback"].distinct("p") if isinstance(p, str)):
        scoped = warehouse.in_project(project)
        known = deleted = np.zeros(0, "S12")
        for run, name in all_numbers(scoped):
            try:
                ids = read_moments(scoped, run, name)[0].ids
                new = np.setdiff1d(ids, known)
                known = np.union1d(known, new)
                deleted = np.union1d(deleted, _missing(scoped, new))
                gone = np.isin(ids, deleted)
                if gone.any() and (dry_run or merge_chunks(scoped, run, name, partial(_are_not_in, deleted))):
                    removed += int(np.count_nonzero(gone))
            except (StorageError, BusyError) as error:
                log.warning("%s", error)
    return removed


def _are_not_in(others: Ids, ids: Ids) -> NDArray[np.bool_]:
    return ~np.isin(ids, others)


def _missing(warehouse: Warehouse, ids: Ids) -> Ids:
    """Those of some ids that no sample has."""
    found: list[bytes] = []
    for low in range(0, len(ids), _LOOK):
        raw = ids[low : low + _LOOK].tobytes()
        some = [ObjectId(raw[at : at + 12]) for at in range(0, len(raw), 12)]
        of = {"_id": {"$in": some}, "_tdb.p": warehouse.project}
        found += [doc["_id"].binary for doc in read_all(warehouse.index["data"].find(of, {"_id": 1}))]
    return np.setdiff1d(ids, np.array(found, "S12"))
