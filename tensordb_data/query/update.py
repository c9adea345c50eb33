"""Update documents: which operators there are, and what they may touch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tensordb_data.common.bson_values import CODE_OPERATORS, plain
from tensordb_data.errors import QueryError

OPERATORS = ("$set", "$unset", "$inc", "$mul", "$min", "$max", "$push", "$pull", "$addToSet")
NUMERIC = ("$inc", "$mul", "$min", "$max")
LISTS = ("$push", "$pull", "$addToSet")

_ADVICE = {
    "_id": "an entity's identity never changes; delete it and write another",
    "_tdb": "it is internal to TensorDB",
    "tags": "use .tag(...) and .untag(...)",
}


def clean_update(update: object) -> dict[str, dict[str, Any]]:
    """A checked deep copy of an update document.

    Raises:
        QueryError: It is malformed, uses an operator that is not offered, or touches what is not the user's.
    """
    if not isinstance(update, Mapping):
        hint = "; pipelines are not offered" if isinstance(update, (list, tuple)) else ""
        raise QueryError(f'an update is a dict such as {{"$set": {{"label": 7}}}}; found {type(update).__name__}{hint}')
    if not update:
        raise QueryError('the update is empty; say for example {"$set": {"label": 7}}')
    out: dict[str, dict[str, Any]] = {}
    for operator, changes in update.items():
        if operator in CODE_OPERATORS:
            raise QueryError(f"{operator} runs code on the server and is refused")
        if operator not in OPERATORS:
            hint = f'; to set a field: {{"$set": {{{operator!r}: …}}}}' if not str(operator).startswith("$") else ""
            raise QueryError(f"an update uses {', '.join(OPERATORS)}; found {operator!r}{hint}")
        if not isinstance(changes, Mapping) or not changes:
            raise QueryError(f"{operator} takes a dict of field to value; found {changes!r}")
        cleaned: dict[str, Any] = {}
        for path, value in changes.items():
            _check_path(operator, path)
            conditions = operator in LISTS  # $each, $in … are operators there
            cleaned[path] = plain(value, _fail(operator, path), filter=conditions)
        out[operator] = cleaned
    return out


def _check_path(operator: str, path: object) -> None:
    if not isinstance(path, str) or not path or "\0" in path or any(not part for part in path.split(".")):
        raise QueryError(f"{operator}: a field is named by a non-empty string; found {path!r}")
    root = path.split(".")[0]
    if root in _ADVICE:
        raise QueryError(f"{operator}: {root!r} cannot be updated: {_ADVICE[root]}")
    if any(part.startswith("$") for part in path.split(".")):
        raise QueryError(f"{operator}: {path!r} uses a positional operator, which is not offered; "
                         "name the position, or set the whole list")  # fmt: skip


def _fail(operator: str, path: str) -> Any:
    return lambda message: QueryError(f"{operator} {path!r}: {message}")
