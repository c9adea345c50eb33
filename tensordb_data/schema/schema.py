"""The schema of a dataset: its fields and their kinds."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tensordb_data.common.html import Html, Shown, pairs
from tensordb_data.errors import SchemaError
from tensordb_data.schema import Array, Field, Scalar, field_from_doc, infer
from tensordb_data.schema.widening import widened

PROVENANCE = "provenance"
"""The key under which a sample says which of its values were set by a machine."""

RESERVED = ("_id", "_tdb", "dataset", "tags", PROVENANCE)

_TYPES: dict[Any, str] = {
    bool: "bool", int: "int", float: "float", str: "str", dt.datetime: "datetime", dict: "json", list: "json",
}  # fmt: skip


MARK = "_tdb"
"""The name, which no field can have, under which the schema of a dataset says that it is of format 2."""
MARKED = {MARK: {"kind": "of format 2"}}
"""Version 0.1 reads the schema in each commit and for each plan, and refuses a kind of field that it does not know."""


def stored_doc(schema: Schema | None) -> dict[str, Any]:
    """The schema in the document of a dataset; None before the first commit."""
    return {**({} if schema is None else schema.to_doc()), **MARKED}


def stored_schema(doc: Mapping[str, Any] | None) -> Schema | None:
    """The schema that a dataset's document holds; None before the first commit."""
    return Schema.from_doc(doc) if doc is not None and set(doc) - {MARK} else None


class Schema(Mapping[str, Field], Shown):
    """The fields of a dataset by name; a frozen value.

    Args:
        fields: Name to field.
    """

    def __init__(self, fields: Mapping[str, Field]) -> None:
        self._fields = dict(fields)

    def __getitem__(self, name: str) -> Field:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __eq__(self, other: object) -> bool:
        return self._fields == dict(other) if isinstance(other, Mapping) else NotImplemented

    def __hash__(self) -> int:
        return hash(frozenset(self._fields.items()))

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    def _html(self) -> Html:
        return pairs(self.items())

    def __repr__(self) -> str:
        return f"Schema({self._fields!r})"

    def to_doc(self) -> dict[str, Any]:
        """The schema as a document."""
        return {name: field.to_doc() for name, field in self._fields.items()}

    @classmethod
    def from_doc(cls, doc: Mapping[str, Any]) -> Schema:
        """The schema that `to_doc` wrote, or `stored_doc`."""
        doc = {name: part for name, part in doc.items() if name != MARK}
        return cls({name: field_from_doc(part) for name, part in doc.items()})

    @classmethod
    def declared(cls, dataset: str, fields: Mapping[str, Any]) -> Schema:
        """A schema given by the user: fields, or Python types for scalars.

        Raises:
            SchemaError: A name cannot be one, or a field is not a field.
        """
        if not isinstance(fields, Mapping) or not fields:
            raise SchemaError(f'dataset {dataset!r}: a schema is a dict such as {{"image": Array("uint8", (28, 28))}}; '
                              f"found {fields!r}")  # fmt: skip
        out: dict[str, Field] = {}
        for name, field in fields.items():
            check_field_name(dataset, name)
            if isinstance(field, type) and field in _TYPES:
                field = Scalar(_TYPES[field])
            if not isinstance(field, Field):
                raise SchemaError(f"dataset {dataset!r}, field {name!r}: expected Array, Image, Audio, Video, Volume, "
                                  f"Bytes, Text, Scalar or a Python type, found {field!r}")  # fmt: skip
            out[name] = field
        return cls(out)

    @classmethod
    def inferred(cls, dataset: str, sample: Mapping[str, Any]) -> Schema:
        """The schema that a first sample asks for.

        Raises:
            SchemaError: A value does not tell of what kind its field is, or a name cannot be one.
        """
        out: dict[str, Field] = {}
        for name, value in sample.items():
            check_field_name(dataset, name)
            try:
                if isinstance(value, (bytes, bytearray)) and not value:
                    raise SchemaError("empty bytes do not tell whether images or other bytes will come: declare the "
                                      f"field when the dataset is made, schema={{{name!r}: Bytes()}}")  # fmt: skip
                out[name] = infer(value)
            except SchemaError as error:
                raise SchemaError(f"dataset {dataset!r}, field {name!r}: {error}") from None
        return cls(out)

    def missing(self, given: Schema, dataset: str, *, older: bool = False) -> dict[str, Field]:
        """The fields that `given` adds to this, stored, schema.

        Args:
            given: Another schema of the dataset.
            dataset: The dataset, for messages.
            older: Whether `given` was the stored one before, so that this one may have been widened since.

        Raises:
            SchemaError: The two differ in more than further optional fields.
        """
        added: dict[str, Field] = {}
        for name, field in given.items():
            stored = self.get(name)
            if stored is None:
                if not field.optional:
                    raise SchemaError(
                        f"dataset {dataset!r}, field {name!r}: expected one of the stored fields {list(self)}, found "
                        f"a new one; samples without it exist, so declare it with optional=True: {field!r}"
                    )
                added[name] = field
            elif older and widened(field, stored) is not None:
                continue
            elif stored != field and stored != dataclasses.replace(field, optional=True):
                raise SchemaError(f"dataset {dataset!r}, field {name!r}: expected {stored!r}, as stored, found "
                                  f"{field!r}; use the stored schema, or write to another dataset")  # fmt: skip
        for name, stored in self.items():
            if name not in given and not stored.optional:
                raise SchemaError(f"dataset {dataset!r}, field {name!r}: expected {stored!r}, as stored, found no "
                                  "such field in the schema; leave schema= out to use the stored one")  # fmt: skip
        return added


def check_field_name(dataset: str, name: object) -> str:
    """`name` if a field of a sample can be called that.

    Raises:
        SchemaError: It cannot; the message says why.
    """
    where = f"dataset {dataset!r}, field {name!r}"
    if not isinstance(name, str) or not name:
        raise SchemaError(f"{where}: expected a non-empty string as a name, found {name!r}")
    if name in RESERVED:
        advice = {
            "tags": "tags= takes a list of strings and has no place in a schema",
            PROVENANCE: "it says which values were set by `annotate`; choose another",
        }
        raise SchemaError(f"{where}: this name is taken; {advice.get(name, 'choose another')}")
    if name.startswith("$") or "." in name or "\0" in name:
        raise SchemaError(
            f"{where}: a name must not begin with '$' or hold '.' or NUL, which MongoDB gives a meaning; rename it"
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise SchemaError(f"{where}: expected valid Unicode, found a lone surrogate; rename it") from None
    return name


def check_names(dataset: str, schema: Schema, given: Iterable[str]) -> None:
    """Refuse fields that the schema does not have."""
    for name in given:
        if name not in schema:
            check_field_name(dataset, name)
            raise unknown_field(dataset, name, schema)


def unknown_field(dataset: str, name: str, schema: Schema) -> SchemaError:
    """The error for a field that the schema does not have."""
    return SchemaError(
        f"dataset {dataset!r}, field {name!r}: expected the fields {', '.join(schema)}, found a new one; to add it, "
        f"db.data.schema({dataset!r}).evolve({name}=<field>(..., optional=True)) before the writer is opened"
    )


def missing_field(dataset: str, name: str, field: Field) -> SchemaError:
    """The error for a field that a sample must have."""
    return SchemaError(f"dataset {dataset!r}, field {name!r}: expected {field!r}, found nothing; "
                       "give it a value, or let samples lack it from now on: "
                       f"{_evolve(dataset, name, dataclasses.replace(field, optional=True))}")  # fmt: skip


def located(dataset: str, name: str, field: Field, error: Exception, row: int | None = None) -> str:
    """The text of an error of a field, with the place of the error and what to do about it."""
    advice = ""
    if isinstance(field, Array) and "shape" in str(error):
        free = Array(field.dtype, optional=field.optional)
        advice = f"; for shapes that vary, make the dataset with schema={{{name!r}: {free!r}}}, or "
        advice += _evolve(dataset, name, free)
    elif isinstance(field, Scalar) and field.kind == "int" and "found float" in str(error):
        advice = f"; to take floats from now on: {_evolve(dataset, name, dataclasses.replace(field, kind='float'))}"
    return f"dataset {dataset!r}, field {name!r}{'' if row is None else f', row {row}'}: {error}{advice}"


def _evolve(dataset: str, name: str, field: Field) -> str:
    """How a program widens a field."""
    return f"db.data.schema({dataset!r}).evolve(**{{{name!r}: {field!r}}})"
