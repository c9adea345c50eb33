"""How the values of a sample become bytes or index fields, and back."""

from tensordb_data.codecs.fields import Array, BlobField, Bytes, Field, Image, Scalar, Text, field_from_doc
from tensordb_data.codecs.infer import infer

__all__ = ["Array", "BlobField", "Bytes", "Field", "Image", "Scalar", "Text", "field_from_doc", "infer"]
