"""Have an embedded server rewrite its files, so that free pages go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensordb_data.errors import QueryError

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse


def compact_server(warehouse: Warehouse) -> None:
    """Compact all collections of an embedded server.

    Raises:
        QueryError: The server is not embedded.
    """
    check_embedded(warehouse)
    database = warehouse.index.database
    for name in database.list_collection_names(filter={"type": "collection"}):
        if not name.startswith("system."):
            database.command({"compact": name, "force": True})


def check_embedded(warehouse: Warehouse) -> None:
    """Check that the server is embedded.

    Raises:
        QueryError: It is not.
    """
    if warehouse.address.folder is None:
        raise QueryError(
            "only an embedded server is compacted from here: ask who runs this one to run MongoDB's `compact` on each"
            " collection"
        )
