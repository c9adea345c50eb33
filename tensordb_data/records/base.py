"""What the five collections have in common: an entity read from the index, and the verbs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from bson import ObjectId

from tensordb_data.errors import QueryError
from tensordb_data.query import Filter, Query, Sort, check_name
from tensordb_data.records.tombstones import FIELDS, delete
from tensordb_data.records.update import clean_update
from tensordb_data.search.entries import Entries
from tensordb_data.search.follow import findable

if TYPE_CHECKING:
    from tensordb_data.selection import Selection
    from tensordb_data.warehouse import TensorDB


class Record(Mapping[str, Any]):
    """One entity, as it was when it was read: a mapping of its fields, including `_id` and `tags`."""

    __slots__ = ("__weakref__", "_db", "_doc")

    def __init__(self, db: TensorDB, doc: Mapping[str, Any]) -> None:
        self._db = db
        self._doc = doc

    @property
    def id(self) -> Any:
        """The entity's `_id`."""
        return self._doc["_id"]

    @property
    def tags(self) -> list[str]:
        """The entity's tags, a copy."""
        return list(self._doc.get("tags", ()))

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
        return type(self), (self._db, self._doc)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={_short(value)}" for name, value in self._shown())
        return f"{type(self).__name__}({shown})"

    def _shown(self) -> Iterator[tuple[str, Any]]:
        yield "id", str(self.id)
        for key, value in self._doc.items():
            if key not in ("_id", "_tdb") and not (key == "tags" and not value):
                yield key, value


R = TypeVar("R", bound=Record)


class Collection(Generic[R]):
    """One of the five collections of a project. `find` selects its entities.

    Args:
        db: The warehouse.
        name: The collection's name.
        record_type: The class of its entities, made as `record_type(db, document)`.
    """

    def __init__(self, db: TensorDB, name: str, record_type: type[R]) -> None:
        self._db = db
        self._entries = Entries(db, name)
        self.name = name
        self._record_type = record_type

    def find(
        self,
        filter: Filter | None = None,
        *,
        sort: Sort | None = None,
        limit: int | None = None,
        fields: Iterable[str] | None = None,
    ) -> Selection[R]:
        """Select entities, by a filter in MongoDB's query language. The Selection is lazy: nothing is read yet.

        Args:
            filter: For example `{"dataset": "fashion", "label": {"$in": [0, 1]}}`; None for all entities.
            sort: `[("val_acc", -1)]`; None for the order in which they were committed.
            limit: The most entities to select; None for no limit.
            fields: Names of the fields to read; None for all.

        Raises:
            QueryError: An argument is malformed, or an operator would run code on the server.
        """
        from tensordb_data.selection import Selection

        return Selection(self._db, Query(self.name, filter, sort=sort, limit=limit, fields=fields))

    def create_index(self, fields: str | Sequence[str | tuple[str, int]]) -> str:
        """Create an index within the project, for queries that filter or sort by `fields`.

        Args:
            fields: Names, or pairs of name and direction. Put fields that are compared for equality first, then those
                of the sort.

        Returns:
            The name of the index. If the index exists, this does nothing.
        """
        if not isinstance(fields, (str, list, tuple)):
            raise QueryError(f"create_index takes field names, or pairs of name and direction; found {fields!r}")
        keys: list[tuple[str, int]] = []
        for field in [fields] if isinstance(fields, str) else fields:
            name, direction = (field, 1) if isinstance(field, str) else field
            if direction not in (1, -1):
                raise QueryError(f"an index on {name!r} has the direction 1 or -1; found {direction!r}")
            keys.append((check_name(name, "create_index"), direction))
        if not keys:
            raise QueryError("an index needs at least one field")
        keys += [key for key in self._order() if key[0] not in dict(keys)]
        return str(self._db._mongo()[self.name].create_index([("_tdb.p", 1), *keys]))

    def __repr__(self) -> str:
        return f"<collection {self.name} of project {self._db.project!r}>"

    # What a subclass may refine

    def _entities(self, docs: Sequence[Mapping[str, Any]]) -> list[R]:
        """The entities of a chunk of documents."""
        return [self._record_type(self._db, doc) for doc in docs]

    def _order(self) -> list[tuple[str, int]]:
        """The order of a query that asks for none; total."""
        return [("_id", 1)]

    def _projection(self, fields: Sequence[str] | None) -> dict[str, Any] | None:
        if fields is None:
            return None
        return dict.fromkeys(("tags", "_tdb", *fields), 1)

    def _update(self, selection: Selection[R], update: Mapping[str, Any]) -> int:
        return self._write(selection, clean_update(update))

    def _write(self, selection: Selection[R], update: Mapping[str, Any] | None) -> int:
        """Apply an update to the selected entities, or delete them when it is None."""
        from tensordb_data.selection import reported

        mongo = selection._mongo
        if update is None:
            if self.name in FIELDS:
                return selection._modify(lambda filter: delete(self._db, self.name, filter))
            return selection._modify(lambda filter: int(mongo.delete_many(filter).deleted_count))
        with reported(selection.query), findable(selection, update):
            return selection._modify(lambda filter: int(mongo.update_many(filter, update).modified_count))


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
