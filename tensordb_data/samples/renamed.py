"""Who writes under a name that a field no longer has is told the new one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import SchemaError
from tensordb_data.mongo.retry import read_all

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse


def check_not_renamed(
    warehouse: Warehouse, datasets: Sequence[str], fields: Iterable[str], session: Any = None
) -> None:
    """Refuse to write under the old name of a field.

    Args:
        warehouse: The warehouse.
        datasets: The datasets.
        fields: The names to write under.
        session: Of the transaction that writes.

    Raises:
        SchemaError: A field had such a name, and has another one now.
    """
    found = warehouse.index["datasets"].find(warehouse.datasets.filter(datasets), {"renamed": 1}, session=session)
    for doc in read_all(found) if session is None else found:  # a transaction begins again as a whole
        refuse_renamed(doc["_id"]["d"], doc.get("renamed", {}), fields)


def refuse_renamed(dataset: str, renamed: Mapping[str, str], fields: Iterable[str]) -> None:
    """Refuse to write under the old name of a field.

    Args:
        dataset: The dataset.
        renamed: The new names of its fields, by the old ones.
        fields: The names to write under.

    Raises:
        SchemaError: A field had such a name, and has another one now.
    """
    for name in renamed.keys() & set(fields):
        raise renamed_error(dataset, name, renamed[name])


def renamed_error(dataset: str, old: str, new: str) -> SchemaError:
    """The error for a field that has another name now."""
    return SchemaError(
        f"dataset {dataset!r}, field {old!r}: it was renamed to {new!r}, so nothing was written; use that name,"
        f" in a new writer; for another field of the old name, db.data.schema({dataset!r}).evolve({old}=...) first"
    )
