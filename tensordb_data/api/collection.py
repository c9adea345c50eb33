"""What the five collections have in common: an entity read from the index, and the verbs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tensordb_data.api.selection import Selection
from tensordb_data.common.html import Html, Shown
from tensordb_data.errors import QueryError
from tensordb_data.query.query import Filter, Query, Sort, check_name
from tensordb_data.query.update import clean_update
from tensordb_data.search.reindex import reindexing
from tensordb_data.table.notebook import collection_html, first_docs, soon
from tensordb_data.warehouse.bound_query import BoundQuery, default_order, reported
from tensordb_data.warehouse.deletion_log import FIELDS, delete
from tensordb_data.warehouse.record import Record

if TYPE_CHECKING:
    from tensordb_data.api.protocol import Facade

R = TypeVar("R", bound=Record)


class Collection(Shown, Generic[R]):
    """One of the five collections of a project. `find` selects its entities.

    Args:
        db: The warehouse.
        name: The collection's name.
        record_type: The class of its entities, made as `record_type(warehouse, document)`.
    """

    def __init__(self, db: Facade, name: str, record_type: type[R]) -> None:
        self.db = db
        self.name = name
        self._warehouse = db.warehouse
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
        return Selection(self.db, Query(self.name, filter, sort=sort, limit=limit, fields=fields))

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
        keys += [key for key in default_order(self.name) if key[0] not in dict(keys)]
        return str(self._warehouse.index[self.name].create_index([("_tdb.p", 1), *keys]))

    def __repr__(self) -> str:
        return f"<collection {self.name} of project {self._warehouse.project!r}>"

    def _html(self) -> Html:
        bound = BoundQuery(self._warehouse, Query(self.name))
        with soon():
            docs = first_docs(bound) if self.name != "data" else []
            return collection_html(bound, self.entities(docs))

    # What a Selection asks of its collection

    def entities(self, docs: Sequence[Mapping[str, Any]]) -> list[R]:
        """The entities of a chunk of documents."""
        return [self._record_type(self._warehouse, doc) for doc in docs]

    def update_selected(self, selection: BoundQuery, update: Mapping[str, Any]) -> int:
        """Check an update and apply it to the selected entities; returns how many were modified."""
        return self.write_selected(selection, clean_update(update))

    def write_selected(self, selection: BoundQuery, update: Mapping[str, Any] | None) -> int:
        """Apply an update to the selected entities, or delete them when it is None."""
        mongo = selection.collection
        if update is None:
            if self.name in FIELDS:
                return delete(selection)
            return selection.modify(lambda filter, session: mongo.delete_many(filter, session=session).deleted_count)
        with reported(selection.query), reindexing(selection, update):
            return selection.modify(
                lambda filter, session: mongo.update_many(filter, update, session=session).modified_count
            )
