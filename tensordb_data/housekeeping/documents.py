"""What is wrong with documents that other tools may have edited."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bson import Binary, ObjectId

from tensordb_data.blobs.segments.references import is_reference
from tensordb_data.errors import SchemaError
from tensordb_data.schema import Scalar, field_from_doc
from tensordb_data.schema.field import describe
from tensordb_data.schema.schema import MARK, Schema

Fault = tuple[str | None, str]
"""The field, or None for the whole document, and what was expected and found."""

_PLACE: Mapping[str, type | tuple[type, ...]] = {"key": str, "root": int}
_EXPECTED: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "segments": {**_PLACE, "_id": ObjectId},
    "tombstones": _PLACE,
    "tensors": {**_PLACE, "o": int, "n": int, "_id.h": (bytes, Binary), "_id.p": str},
    "params": {"_tdb.p": str},
    "architectures": {"_tdb.p": str, "name": str},
    "logs": {"_tdb.p": str, "run": str},
    "frozen": {"_tdb.p": str, "name": str, "_tdb.structure": (bytes, Binary)},
}
"""What must be in the documents of a collection for an object to be found, and of which types."""


class Schemas:
    """The schemas of all projects, read as they are needed.

    Args:
        datasets: The collection of the datasets.
    """

    def __init__(self, datasets: Any) -> None:
        self._datasets = datasets
        self._known: dict[tuple[str, str], Schema | None] = {}

    def of(self, doc: Mapping[str, Any]) -> Schema | None:
        """The schema of the dataset of a sample; None if it cannot be read, empty if there is no such dataset."""
        key = (repr(project_of(doc)), repr(doc.get("dataset")))
        if key not in self._known:
            self._known[key] = self._read(project_of(doc), doc.get("dataset"))
        return self._known[key]

    def _read(self, project: Any, dataset: Any) -> Schema | None:
        found = self._datasets.find_one({"_id": {"p": project, "d": dataset}}, {"schema": 1})
        if found is None and isinstance(dataset, str):
            return Schema({})
        try:
            return Schema({name: field_from_doc(part) for name, part in found["schema"].items() if name != MARK})
        except (SchemaError, KeyError, TypeError, AttributeError):
            return None


def project_of(doc: Mapping[str, Any]) -> Any:
    """The project of a sample; None if its document does not say."""
    internals = doc.get("_tdb")
    return internals.get("p") if isinstance(internals, Mapping) else None


def faults(doc: Mapping[str, Any], schema: Schema | None) -> Iterator[Fault]:
    """What is wrong with the document of a sample, beside the blobs to which it refers."""
    internals = doc.get("_tdb")
    if not isinstance(internals, Mapping) or not isinstance(internals.get("p"), str):
        yield None, f"expected its project and place in _tdb, found {describe(internals)}"
        return
    references = internals.get("b", {})
    if not isinstance(references, Mapping):
        yield None, f"expected references to blobs by field, found {describe(references)}"
        references = {}
    for name, part in references.items():
        if not is_reference(part):
            yield name, f"expected a reference to a blob, found {describe(part)}"
    if schema is None:
        yield None, "its dataset has no schema that can be read"
        return
    for name, field in schema.items():
        value = doc.get(name) if isinstance(field, Scalar) else references.get(name)
        if value is None:
            if not field.optional and getattr(field, "kind", "") != "json":
                yield name, f"expected {field!r}, found nothing"
        elif isinstance(field, Scalar):
            try:
                field.read(value)
            except SchemaError as error:
                yield name, str(error)


def document_fault(collection: str, doc: Mapping[str, Any]) -> str | None:
    """Why a document of another collection tells of no object; None if it does."""
    for path, types in _EXPECTED[collection].items():
        found: Any = doc
        for part in path.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        if not isinstance(found, types) or isinstance(found, bool):
            return f"expected {path} as this library writes it, found {describe(found)}"
    if collection in ("params", "architectures", "logs", "frozen"):
        contents = doc["_tdb"].get("tensors", [])
        if not isinstance(contents, list) or not all(isinstance(content, bytes) for content in contents):
            return f"expected a list of tensors in _tdb.tensors, found {describe(contents)}"
    return None
