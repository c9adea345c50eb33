"""The kinds of fields, and how a schema document names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tensordb_data.errors import SchemaError
from tensordb_data.schema.array import Array
from tensordb_data.schema.binary import Bytes, Text
from tensordb_data.schema.field import BlobField, Field, doc_value
from tensordb_data.schema.image import Image
from tensordb_data.schema.scalar import SCALAR_KINDS, Scalar

__all__ = ["Array", "BlobField", "Bytes", "Field", "Image", "Scalar", "Text", "field_from_doc"]

BLOB_KINDS: frozenset[str] = frozenset(field.kind for field in (Array, Image, Bytes, Text))


def field_from_doc(doc: Mapping[str, Any]) -> Field:
    """The field that `to_doc` wrote.

    Raises:
        SchemaError: the document is malformed, or of a kind that this version does not know.
    """
    kind = doc_value(doc, "kind")
    optional = bool(doc.get("optional", False))
    if kind == "array":
        was = doc.get("was")
        was = None if was is None else tuple(int(n) for n in was)
        return Array(doc_value(doc, "dtype"), doc.get("shape"), optional=optional, was=was)
    if kind == "image":
        mode, dtype = doc_value(doc, "mode", "unchanged"), doc_value(doc, "dtype", "uint8")
        return Image(mode, dtype, bool(doc.get("orient", False)), optional=optional)
    if kind == "bytes":
        return Bytes(optional=optional)
    if kind == "text":
        return Text(optional=optional)
    if kind in SCALAR_KINDS:
        return Scalar(kind, optional=optional)
    raise SchemaError(f"unknown kind of field {kind!r}: the schema was written by a newer version of tensordb-data")
