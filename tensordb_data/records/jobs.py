"""Jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensordb_data.records.base import Collection, Record

if TYPE_CHECKING:
    from tensordb_data.warehouse import TensorDB


class Job(Record):
    """One job, as it was when it was read."""

    __slots__ = ()


class Jobs(Collection[Job]):
    """`db.jobs`."""

    def __init__(self, db: TensorDB) -> None:
        super().__init__(db, "jobs", Job)
