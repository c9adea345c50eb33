"""How a query names a frozen set: by name, and by `_id`, so that another set of the name is not taken for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from bson import ObjectId

from tensordb_data.errors import QueryError

_LONGEST = 200


class Frozen(NamedTuple):
    """Which frozen set a query selects."""

    name: str
    id: ObjectId | None = None
    """Its `_id`; None for the set that has the name when the query is asked."""


def clean_frozen(frozen: Any) -> Frozen | None:
    """A checked frozen set of a query.

    Raises:
        QueryError: It is malformed.
    """
    if frozen is None:
        return None
    if isinstance(frozen, str):
        return Frozen(check_set_name(frozen))
    if isinstance(frozen, Frozen):
        frozen = frozen._asdict()
    if not isinstance(frozen, Mapping) or not set(frozen) <= {"name", "id"}:
        raise QueryError(f'a frozen set is named by its name, such as "v1"; found {frozen!r:.200}')
    id = frozen.get("id")
    if id is not None and not (isinstance(id, (str, ObjectId)) and ObjectId.is_valid(id)):
        raise QueryError(f"the id of a frozen set is an ObjectId; found {id!r:.200}")
    return Frozen(check_set_name(frozen.get("name")), None if id is None else ObjectId(id))


def check_set_name(name: object) -> str:
    """`name` if a frozen set can have it.

    Raises:
        QueryError: It cannot.
    """
    if not isinstance(name, str) or not name.strip() or len(name) > _LONGEST or not name.isprintable():
        raise QueryError(
            f"a frozen set is named by a text of 1 to {_LONGEST} characters that print; found {name!r:.200}"
        )
    return name
