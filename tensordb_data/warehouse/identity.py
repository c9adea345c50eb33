"""What identifies a sample that comes from outside: its `_id` is a function of where it comes from, or what it is.

All doors use these functions: ingests, and writers of engines that may write a row twice. So a row that comes again is
the same sample, whichever door it takes.

    _id = the first 12 bytes of xxh3_128 over (kind, project, dataset, source, key)

A key is of a row, such as the value of its key column; then `source` is empty unless the user names one. Or it is a
place within a source, such as the path of a file below a folder. Or it is the content of the row: then it has the
digest of the content, and a number that tells equal rows apart.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import bson
import xxhash
from bson import ObjectId

from tensordb_data.errors import SchemaError
from tensordb_data.schema.missing import is_missing
from tensordb_data.schema.scalar import Scalar

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_JSON = Scalar("json")
_WHOLE = 2.0**53


class Identities:
    """The `_id`s of the samples of one dataset.

    Args:
        project: The project.
        dataset: The name for identities of the dataset, from `identity_name`.
    """

    def __init__(self, project: str, dataset: str) -> None:
        self._project, self._dataset = project, dataset

    def of_key(self, key: bytes, source: str = "") -> ObjectId:
        """The `_id` of a row that is known by a key; see `row_key`."""
        return self._id(b"key", source, key)

    def of_place(self, source: str, place: bytes) -> ObjectId:
        """The `_id` of a row that is known by its place in a source."""
        return self._id(b"place", source, place)

    def of_content(self, digest: bytes, number: int) -> ObjectId:
        """The `_id` of a row that is known by its content, and by its number among equal rows, from 0."""
        return self._id(b"content", "", digest + number.to_bytes(8, "big"))

    def _id(self, kind: bytes, source: str, key: bytes) -> ObjectId:
        parts = (kind, self._project.encode(), self._dataset.encode(), source.encode(errors="surrogateescape"), key)
        return ObjectId(xxhash.xxh3_128_digest(b"".join(struct.pack("<Q", len(part)) + part for part in parts))[:12])


def identity_name(warehouse: Warehouse, dataset: str) -> str:
    """The name of a dataset within the `_id`s of its samples: the one that it had first.

    A dataset that was renamed keeps its samples. A new one of the old name has other samples, and so another name here.
    """
    datasets = warehouse.index["datasets"]
    mine = {"_id": warehouse.datasets.id(dataset)}
    found = datasets.find_one(mine, {"ids": 1})
    if found is not None and "ids" in found:
        return str(found["ids"])
    if datasets.find_one({"_id.p": warehouse.project, "ids": dataset}, {"_id": 1}) is None:
        return dataset
    if found is not None:
        datasets.update_one({**mine, "ids": {"$exists": False}}, {"$set": {"ids": f"{dataset}\0{ObjectId()}"}})
        found = datasets.find_one(mine, {"ids": 1}) or {}
        return str(found.get("ids", dataset))
    return f"{dataset}\0"  # nothing is written yet, as in a dry run


def row_key(values: Iterable[Any]) -> bytes:
    """The key of a row: the values of its key columns, in order. A whole float is the same key as that integer.

    Raises:
        SchemaError: A value is missing, or cannot be a key.
    """
    given = [_JSON.encode(value) for value in values]
    if any(is_missing(value) for value in given):
        raise SchemaError("expected a value in each key column, found a missing one")
    return bson.encode({"k": _canonical(given)})


def scalar_bytes(fields: Mapping[str, Any]) -> bytes:
    """Index fields in the form over which digests are made. Missing values do not count.

    Equal numbers give equal bytes, also if one is an integer and one a float: a field may be widened between two
    readings of the same source.
    """
    return bson.encode(_canonical({name: fields[name] for name in sorted(fields) if fields[name] is not None}))


def _canonical(value: Any) -> Any:
    kind = type(value)
    if kind is str or kind is int or kind is bool:
        return value
    if kind is float:
        if value != value:
            return bson.Binary(b"nan", 128)  # all of them are equal
        return int(value) if -_WHOLE < value < _WHOLE and value.is_integer() else value
    if isinstance(value, dict):
        return {key: _canonical(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return value
