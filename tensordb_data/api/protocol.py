"""The interfaces through which the parts of the facade use each other, so that they need no import circle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tensordb_data.query.query import Query
    from tensordb_data.warehouse.bound_query import BoundQuery
    from tensordb_data.warehouse.context import Warehouse


class Verbs(Protocol):
    """What a collection does for a Selection of it."""

    def entities(self, docs: Sequence[Mapping[str, Any]]) -> list[Any]:
        """The entities of a chunk of documents."""
        ...

    def update_selected(self, selection: BoundQuery, update: Mapping[str, Any]) -> int:
        """Check a user's update and apply it; returns how many entities were modified."""
        ...

    def write_selected(self, selection: BoundQuery, update: Mapping[str, Any] | None) -> int:
        """Apply an update, or delete the entities when it is None; returns how many were modified."""
        ...


class Facade(Protocol):
    """The part of `TensorDB` that its collections and Selections use."""

    @property
    def project(self) -> str:
        """The project that scopes every entity."""
        ...

    @property
    def warehouse(self) -> Warehouse:
        """The context: index and blobs."""
        ...

    @property
    def data(self) -> Any:
        """Samples."""
        ...

    @property
    def params(self) -> Any:
        """Saved parameters."""
        ...

    @property
    def architectures(self) -> Any:
        """Model architectures."""
        ...

    @property
    def jobs(self) -> Any:
        """Jobs."""
        ...

    @property
    def logs(self) -> Any:
        """Logs of runs."""
        ...

    def collection(self, name: str) -> Any:
        """One of the five collections, by its name."""
        ...

    def select(self, query: Query) -> Any:
        """The Selection of a stored query."""
        ...
