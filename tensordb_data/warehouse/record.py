"""One entity of any of the five collections, as it was read from the index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from bson import ObjectId

from tensordb_data.common.html import Html, Shown, pairs, paragraph
from tensordb_data.errors import QueryError

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse


class Record(Mapping[str, Any], Shown):
    """One entity as it was read: a mapping of its fields, including `_id` and `tags`."""

    __slots__ = ("__weakref__", "_doc", "_warehouse")

    collection: ClassVar[str]
    """The name of its collection."""

    def __init__(self, warehouse: Warehouse, doc: Mapping[str, Any]) -> None:
        self._warehouse = warehouse
        self._doc = doc

    @property
    def id(self) -> Any:
        """The entity's `_id`."""
        return self._doc["_id"]

    @property
    def tags(self) -> list[str]:
        """The entity's tags, a copy."""
        found = self._doc.get("tags")
        return list(found) if isinstance(found, list) else []  # another tool may have written something else

    def __getitem__(self, key: str) -> Any:
        if key in self._doc and key != "_tdb":
            return self._doc[key]
        raise KeyError(f"no field {key!r}; there are {', '.join(self)}")

    def __iter__(self) -> Iterator[str]:
        return (key for key in self._doc if key != "_tdb")

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, key: object) -> bool:
        return any(key == name for name in self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record):
            return NotImplemented
        return type(self) is type(other) and self._doc == other._doc

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._warehouse, self._doc)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={_short(value)}" for name, value in self._shown())
        return f"{type(self).__name__}({shown})"

    def _ipython_key_completions_(self) -> list[str]:
        return [key for key in self if isinstance(key, str)]

    def _html(self) -> Html:
        return Html(paragraph(f"{type(self).__name__} {self.id}") + pairs(self._rows()))

    def _rows(self) -> Iterator[tuple[str, Any]]:
        """What a notebook shows: names and values."""
        return (row for row in self._shown() if row[0] != "id")

    def _shown(self) -> Iterator[tuple[str, Any]]:
        yield "id", str(self.id)
        for key, value in self._doc.items():
            if key not in ("_id", "_tdb") and not (key == "tags" and not value):
                yield key, value


def new_id(value: object) -> ObjectId:
    """`value` if it can be an entity's `_id`, a fresh one for None."""
    if value is None:
        return ObjectId()
    if isinstance(value, ObjectId):
        return value
    raise QueryError(f"_id must be a bson.ObjectId; found {value!r}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
