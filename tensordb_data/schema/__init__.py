"""How the values of a sample become bytes or index fields, and back."""

from tensordb_data.schema.infer import infer
from tensordb_data.schema.kinds import (
    Array,
    Audio,
    BlobField,
    Bytes,
    Field,
    Image,
    Scalar,
    Text,
    Video,
    Volume,
    field_from_doc,
)

__all__ = [
    "Array", "Audio", "BlobField", "Bytes", "Field", "Image", "Scalar", "Text", "Video", "Volume", "field_from_doc",
    "infer",
]  # fmt: skip
