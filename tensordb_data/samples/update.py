"""Updates of samples, checked against the schemas of the datasets that they touch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import QueryError, SchemaError
from tensordb_data.mongo.retry import retry_while_unavailable
from tensordb_data.query.datasets import selected_datasets
from tensordb_data.query.update import LISTS, NUMERIC, clean_update
from tensordb_data.samples.renamed import check_not_renamed
from tensordb_data.schema import Field, Scalar, infer
from tensordb_data.schema.schema import PROVENANCE, Schema, check_field_name

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery
    from tensordb_data.warehouse.context import Warehouse

_JSON = Scalar("json")


def prepare_update(selection: BoundQuery, update: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Check an update, and encode its values as the schemas say.

    A `$set` of a field that no sample has adds it to the schemas, as an optional one.

    Raises:
        QueryError: The update is malformed, or touches what cannot be updated.
        SchemaError: A value does not fit a dataset's schema.
    """
    cleaned = clean_update(update)
    named = selected_datasets(selection.query.filter)
    schemas = selection.warehouse.datasets.schemas(selection.distinct("dataset") if named is None else named)
    out: dict[str, dict[str, Any]] = {}
    new: dict[str, dict[str, Field]] = {}
    for operator, changes in cleaned.items():
        for path, value in changes.items():
            _check_root(operator, path)
            target, fitted = operator, value
            for dataset, schema in schemas.items():
                target, fitted = fit(dataset, schema, operator, path, value, new)
            out.setdefault(target, {})[path] = fitted
            # A value that a person has set no longer counts as an annotation.
            out.setdefault("$unset", {})[f"{PROVENANCE}.{path.split('.')[0]}"] = ""
    evolve(selection.warehouse, new)
    return out


def fit(
    dataset: str, schema: Schema, operator: str, path: str, value: Any, new: dict[str, dict[str, Field]]
) -> tuple[str, Any]:
    """Encode one change as the schema of a dataset says.

    Args:
        dataset: The dataset.
        schema: Its schema.
        operator: The operator of the change.
        path: What it changes.
        value: The new value, or the operand.
        new: Gets the field, by dataset and name, if the schema does not have it.

    Returns:
        Operator and value to send.

    Raises:
        QueryError: The path cannot be updated.
        SchemaError: The value does not fit.
    """
    _check_root(operator, path)
    root, _, inside = path.partition(".")
    where = f"dataset {dataset!r}, field {path!r}"
    field = schema.get(root)
    if field is None:
        if operator != "$set" or inside:
            raise SchemaError(f"{where}: expected one of the fields {', '.join(schema)}, found {root!r}; "
                              "$set the field itself to add it")  # fmt: skip
        field = _added(dataset, root, value)
        new.setdefault(dataset, {})[root] = field
        return operator, value
    if field.is_blob or not isinstance(field, Scalar):
        raise SchemaError(
            f"{where}: {field!r} is a blob, and blobs are immutable; write a new sample and delete this one"
        )
    if inside and field.kind != "json":
        raise SchemaError(f"{where}: expected a path into a json field, found that {root!r} is {field.kind}")
    if operator == "$unset":
        if not inside and not field.optional:
            raise SchemaError(f"{where}: expected an optional field, found {field!r}; every sample must have it")
        return operator, value
    if operator in NUMERIC:
        return operator, _number(where, field, operator, value)
    if operator in LISTS:
        if field.kind != "json":
            raise SchemaError(f"{where}: {operator} needs a list in a json field, found {field.kind}")
        return operator, value
    try:
        fitted = (_JSON if inside else field).encode(value)
    except SchemaError as error:
        raise SchemaError(f"{where}: {error}") from None
    if fitted is None and field.kind != "json":
        return "$unset", ""
    return operator, fitted


def _check_root(operator: str, path: str) -> None:
    root = path.split(".")[0]
    if root == "dataset":
        raise QueryError(f"{operator}: 'dataset' cannot be updated: a sample stays in its dataset; "
                         "write it into the other one, and delete it here")  # fmt: skip


def _number(where: str, field: Scalar, operator: str, value: Any) -> Any:
    if field.kind not in ("int", "float", "json"):
        raise SchemaError(f"{where}: {operator} needs a number, found that the field is {field.kind}")
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or (field.kind == "int" and isinstance(value, float))
    ):
        raise SchemaError(f"{where}: {operator} of a field of kind {field.kind} takes "
                          f"{'an int' if field.kind == 'int' else 'a number'}, found {value!r}")  # fmt: skip
    return float(value) if field.kind == "float" else value


def _added(dataset: str, name: str, value: Any) -> Field:
    check_field_name(dataset, name)
    field = infer(value)
    if not isinstance(field, Scalar):
        raise SchemaError(
            f"dataset {dataset!r}, field {name!r}: {field!r} would be a blob, which only a writer can add"
        )
    return Scalar(field.kind, optional=True)


def evolve(warehouse: Warehouse, new: Mapping[str, Mapping[str, Field]]) -> None:
    """Add optional fields to stored schemas.

    Args:
        warehouse: The warehouse.
        new: The fields, by dataset and name.

    Raises:
        SchemaError: Another writer has just added one as something else.
    """
    for dataset, fields in new.items():
        check_not_renamed(warehouse, [dataset], list(fields))
        retry_while_unavailable(partial(_evolve, warehouse, dataset, fields))


def _evolve(warehouse: Warehouse, dataset: str, fields: Mapping[str, Field]) -> None:
    leaving = {"_id": warehouse.datasets.id(dataset), "leaving": {"$exists": True}}
    if warehouse.index["datasets"].find_one(leaving, {"_id": 1}) is not None:
        raise SchemaError(
            f"dataset {dataset!r} is being renamed or dropped, so it gets no new field; try again after that"
        )
    for name, field in fields.items():
        warehouse.index["datasets"].update_one(
            {"_id": warehouse.datasets.id(dataset), f"schema.{name}": {"$exists": False}},
            {"$set": {f"schema.{name}": field.to_doc()}},
        )
        stored = warehouse.datasets.schemas([dataset])[dataset].get(name)
        if stored != field:  # someone else was first
            raise SchemaError(f"dataset {dataset!r}, field {name!r}: expected {stored!r}, as just added by another "
                              f"writer, found {field!r}")  # fmt: skip
