"""Which fields the selected entities have, as far as schemas say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensordb_data.common.options import nearest
from tensordb_data.errors import QueryError
from tensordb_data.query.query import check_name
from tensordb_data.schema.schema import PROVENANCE

if TYPE_CHECKING:
    from tensordb_data.schema import Field
    from tensordb_data.warehouse.bound_query import BoundQuery

STANDARD = ("_id", "dataset", "tags")
"""Fields of samples that no schema names."""

Fields = dict[str, dict[str, "Field"]]
"""The field in each dataset that has it, by the name of the field."""


def schema_fields(bound: BoundQuery) -> Fields:
    """The fields of the datasets that a query of samples may match, in the order of their schemas."""
    found: Fields = {}
    for dataset, schema in sorted(bound.schemas().items()):
        for name, field in schema.items():
            found.setdefault(name, {})[dataset] = field
    return found


def check_field(bound: BoundQuery, name: object, what: str) -> Fields | None:
    """Refuse a name whose values the index does not have.

    Args:
        bound: The query.
        name: A field, or a dotted name within one.
        what: What is asked for, for messages.

    Returns:
        The fields of the selected datasets; None if these are no samples.

    Raises:
        QueryError: It is no name, is that of a blob, or no selected dataset has such a field.
    """
    root = check_name(name, what).split(".")[0]
    if bound.query.collection != "data":
        return None
    bound.refuse_blobs([root], what)
    fields = schema_fields(bound)
    if fields and root not in fields and root not in (*STANDARD, PROVENANCE):
        raise QueryError(f"{what}: no selected dataset has a field {root!r}{nearest(root, (*fields, *STANDARD))}")
    return fields
