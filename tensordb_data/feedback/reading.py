"""Read feedback, for samples in a given order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tensordb_data.errors import NotFoundError
from tensordb_data.feedback.buffer import flush_feedback, has_fed
from tensordb_data.feedback.moments import Ids, Moments
from tensordb_data.feedback.store import Version, names_of, read_moments, version_of
from tensordb_data.mongo.retry import retry_while_unavailable

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_OF_RUNS = (("runs", "name"), ("logs", "run"), ("params", "run"))


def current_version(warehouse: Warehouse, run: str, name: str) -> Version:
    """The version of what all processes have stored, that of this one included."""
    flush_feedback(warehouse)
    return version_of(warehouse, run, name)


def read_feedback(warehouse: Warehouse, run: str, name: str) -> tuple[Moments, Version]:
    """What all processes have stored of a number, that of this one included; and its version.

    Raises:
        NotFoundError: There is no such run, or it has told other numbers only; and this process has given none.
        StorageError: The feedback of this process cannot be stored, or what is stored is damaged.
    """
    flush_feedback(warehouse)
    moments, version = read_moments(warehouse, run, name)
    if not len(moments) and name not in has_fed(warehouse, run):
        names = names_of(warehouse, run)
        if names:
            raise NotFoundError(f"run {run!r} has told no {name!r} of samples; it has told {', '.join(names)}")
        if not _is_known(warehouse, run):
            raise NotFoundError(
                f"there is no run {run!r} in project {warehouse.project!r}: begin it first, with"
                f" db.logs.run({run!r}, config={{...}}) or a checkpointer, or give feedback in this process before"
            )
    return moments, version


def rows_of(moments: Moments, ids: NDArray[np.uint8]) -> NDArray[np.int64]:
    """For each of n samples the row of its moments, int64 [n]; -1 if there is none.

    Args:
        moments: What is known.
        ids: uint8 [n, 12].
    """
    wanted = sample_bytes(ids)
    if not len(moments):
        return np.full(len(wanted), -1)
    rows = np.minimum(np.searchsorted(moments.ids, wanted), len(moments) - 1)
    found: NDArray[np.int64] = np.where(moments.ids[rows] == wanted, rows, -1)
    return found


def sample_bytes(ids: NDArray[np.uint8]) -> Ids:
    """S12 [n], of uint8 [n, 12]."""
    found: Ids = np.ascontiguousarray(ids).reshape(-1).view("S12")
    return found


def _is_known(warehouse: Warehouse, run: str) -> bool:
    for collection, field in _OF_RUNS:
        filter: dict[str, Any] = {"_tdb.p": warehouse.project, field: run}
        found = warehouse.index[collection]
        if retry_while_unavailable(lambda f=filter, c=found: c.find_one(f, {"_id": 1}), reads=True) is not None:  # type: ignore[misc]
            return True
    return False
