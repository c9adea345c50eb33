"""Entities that lead to other entities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tensordb_data.warehouse.record import Record

if TYPE_CHECKING:
    from tensordb_data.api.protocol import Facade


class LinkedRecord(Record):
    """An entity that has the `TensorDB` from which it was read, so that it can read other entities."""

    __slots__ = ("db",)

    def __init__(self, db: Facade, doc: Mapping[str, Any]) -> None:
        super().__init__(db.warehouse, doc)
        self.db = db

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.db, self._doc)
