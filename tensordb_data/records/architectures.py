"""Model architectures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensordb_data.records.base import Collection, Record

if TYPE_CHECKING:
    from tensordb_data.warehouse import TensorDB


class Architecture(Record):
    """One architecture, as it was when it was read."""

    __slots__ = ()


class Architectures(Collection[Architecture]):
    """`db.architectures`."""

    def __init__(self, db: TensorDB) -> None:
        super().__init__(db, "architectures", Architecture)
