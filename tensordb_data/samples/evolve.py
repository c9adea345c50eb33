"""Change the schema of a dataset that has samples, as far as all of them still fit it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import BusyError, NotFoundError, QueryError, SchemaError
from tensordb_data.query.query import Query
from tensordb_data.samples.changes.apply import update_samples
from tensordb_data.samples.rename_field import rename_field
from tensordb_data.schema import Field, Scalar
from tensordb_data.schema.schema import Schema, stored_doc, stored_schema
from tensordb_data.schema.widening import widened
from tensordb_data.warehouse.bound_query import BoundQuery

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_EXACT = 2**53  # integers up to here are floats without loss


class DatasetSchema(Schema):
    """The schema of a dataset, as it was read. `evolve` widens that of the dataset, and `rename` renames a field.

    Args:
        fields: Name to field.
        warehouse: The warehouse.
        dataset: The name of the dataset.
    """

    def __init__(self, fields: Mapping[str, Field], warehouse: Warehouse, dataset: str) -> None:
        super().__init__(fields)
        self._warehouse, self._dataset = warehouse, dataset

    def evolve(self, **fields: Field | type) -> DatasetSchema:
        """Widen the schema of the dataset: all its samples fit the new one, and are read by it.

        A new field must be optional. A required field may become optional, an int a float, any value in the index
        JSON, and dimensions of arrays free. Writers that are open take the new schema over when they commit.

        Args:
            fields: The new field by name, or a Python type for a value in the index, which keeps what is optional.

        Returns:
            The new schema.

        Raises:
            SchemaError: A new field does not hold all values of the old one.
            NotFoundError: The dataset does not exist, or has no schema yet.
        """
        given = Schema.declared(self._dataset, fields)
        plain = {name for name, field in fields.items() if isinstance(field, type)}
        found = self._warehouse.index.transaction(_Body(self._warehouse, self._dataset, given, plain))
        for name, field in found.items():
            if isinstance(field, Scalar) and field.kind == "float" and name in given:
                left = Query("data", {"dataset": self._dataset, name: {"$type": ["int", "long"]}})
                update_samples(BoundQuery(self._warehouse, left), {"$mul": {name: 1.0}})
        return DatasetSchema(found, self._warehouse, self._dataset)

    def rename(self, **fields: str) -> DatasetSchema:
        """Rename a field of the dataset: `rename(old="new")`. Values, blobs and annotations stay as they are.

        It may run beside readers and writers. Writers that are open fail at their next commit, with an error that says
        the new name, and so do updates under the old name. A pass of a stream that is in progress may end with an
        error. If it is killed, the field has its old name or its new one; call it again.

        Args:
            **fields: The new name, by the old one; one field in a call.

        Returns:
            The new schema.

        Raises:
            SchemaError: There is no such field, or the new name is taken or reserved.
            BusyError: Samples of the dataset are being changed.
            NotFoundError: The dataset does not exist, or has no schema yet.
        """
        if len(fields) != 1:
            raise QueryError(f'rename takes one field, rename(old="new"); found {len(fields)}')
        ((old, new),) = fields.items()
        found = rename_field(self._warehouse, self._dataset, old, new)
        return DatasetSchema(found, self._warehouse, self._dataset)

    def __reduce__(self) -> tuple[Any, ...]:
        return DatasetSchema, (dict(self), self._warehouse, self._dataset)


class _Body:
    """The body of the transaction. A writer that commits meanwhile conflicts with it."""

    def __init__(self, warehouse: Warehouse, dataset: str, given: Schema, plain: set[str]) -> None:
        self._warehouse, self._dataset, self._given, self._plain = warehouse, dataset, given, plain

    def __call__(self, session: Any) -> Schema:
        datasets, id = self._warehouse.index["datasets"], self._warehouse.datasets.id(self._dataset)
        doc = datasets.find_one({"_id": id}, {"schema": 1, "renamed": 1, "renaming": 1}, session=session)
        stored = None if doc is None else stored_schema(doc["schema"])
        if doc is None or stored is None:
            raise NotFoundError(f"dataset {self._dataset!r} has no schema yet: give it to the writer, schema={{...}}")
        schema = Schema({**stored, **{name: self._field(stored, name, session) for name in self._given}})
        if schema != stored:
            self._check_free(doc, schema.keys() - stored.keys(), session)
            changed: dict[str, Any] = {"schema": stored_doc(schema)}
            if "renamed" in doc:
                changed["renamed"] = {old: new for old, new in doc["renamed"].items() if old not in schema}
            datasets.update_one({"_id": id}, {"$set": changed, "$inc": {"mut": 1}}, session=session)
        return schema

    def _check_free(self, doc: Mapping[str, Any], added: Set[str], session: Any) -> None:
        """Refuse names under which a rename that was stopped may have left values."""
        data, here = self._warehouse.index["data"], {"_tdb.p": self._warehouse.project, "dataset": self._dataset}
        renames = {*doc.get("renamed", {}), doc.get("renaming", {}).get("to")}
        for name in renames & added:
            left = {**here, "$or": [{name: {"$exists": True}}, {f"_tdb.b.{name}": {"$exists": True}}]}
            if data.find_one(left, {"_id": 1}, session=session) is not None:
                raise BusyError(
                    f"dataset {self._dataset!r}, field {name!r}: samples have values of that name, left by a rename"
                    " that was stopped; call rename again to end it"
                )

    def _field(self, stored: Schema, name: str, session: Any) -> Field:
        old, new, where = stored.get(name), self._given[name], f"dataset {self._dataset!r}, field {name!r}"
        if old is None:
            if not new.optional:
                raise SchemaError(f"{where}: samples without it exist, so declare it with optional=True: {new!r}")
            return new
        if name in self._plain:
            new = dataclasses.replace(new, optional=old.optional)
        field = widened(old, new)
        if field is None:
            raise SchemaError(
                f"{where}: {new!r} does not hold every value of {old!r}, which samples have. A field may become"
                " optional, an int a float, a value in the index JSON, and a dimension of an array free; for anything"
                " else write into another dataset"
            )
        if isinstance(old, Scalar) and isinstance(field, Scalar) and (old.kind, field.kind) == ("int", "float"):
            self._check_digits(name, field, where, session)
        return field

    def _check_digits(self, name: str, field: Scalar, where: str, session: Any) -> None:
        large = {"$or": [{name: {"$gt": _EXACT}}, {name: {"$lt": -_EXACT}}]}
        scope = {"_tdb.p": self._warehouse.project, "dataset": self._dataset, **large}
        for doc in self._warehouse.index["data"].find(scope, {name: 1}, session=session):
            try:
                field.read(doc[name])
            except SchemaError as error:
                raise SchemaError(f"{where}, sample {doc['_id']}: {error}; the schema stays as it is") from None
