"""The kinds of fields, and how a schema document names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tensordb_data.errors import SchemaError
from tensordb_data.schema.array import Array
from tensordb_data.schema.binary import Bytes, Text
from tensordb_data.schema.field import BlobField, Field, doc_value
from tensordb_data.schema.image import Image
from tensordb_data.schema.media.audio import Audio
from tensordb_data.schema.media.video import Video
from tensordb_data.schema.media.volume import Volume
from tensordb_data.schema.scalar import SCALAR_KINDS, Scalar

__all__ = [
    "Array", "Audio", "BlobField", "Bytes", "Field", "Image", "Scalar", "Text", "Video", "Volume", "field_from_doc",
]  # fmt: skip

BLOB_KINDS: frozenset[str] = frozenset(f.kind for f in (Array, Image, Bytes, Text, Audio, Video, Volume))


def field_from_doc(doc: Mapping[str, Any]) -> Field:
    """The field that `to_doc` wrote.

    Raises:
        SchemaError: the document is malformed, or of a kind that this version does not know.
    """
    if not isinstance(doc, Mapping):
        raise SchemaError(f"malformed schema: expected a document for each field, found {doc!r:.80}")
    try:
        return _field(doc)
    except SchemaError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise SchemaError(f"malformed schema: {doc!r:.80}: {error}") from None


def _field(doc: Mapping[str, Any]) -> Field:
    kind = doc_value(doc, "kind")
    optional = bool(doc.get("optional", False))
    if kind == "array":
        was = doc.get("was")
        was = None if was is None else tuple(int(n) for n in was)
        return Array(doc_value(doc, "dtype"), doc.get("shape"), optional=optional, was=was)
    if kind == "image":
        mode, dtype = doc_value(doc, "mode", "unchanged"), doc_value(doc, "dtype", "uint8")
        return Image(mode, dtype, bool(doc.get("orient", False)), optional=optional)
    if kind == "audio":
        return Audio(doc.get("rate"), doc.get("channels"), optional=optional)
    if kind == "video":
        return Video(optional=optional)
    if kind == "volume":
        return Volume(doc_value(doc, "dtype", "float32"), orient=doc.get("orient"), optional=optional)
    if kind == "bytes":
        return Bytes(optional=optional)
    if kind == "text":
        return Text(optional=optional)
    if isinstance(kind, str) and kind in SCALAR_KINDS:
        return Scalar(kind, optional=optional)
    raise SchemaError(f"unknown kind of field {kind!r}: the schema was written by a newer version of tensordb-data")
