"""The stored bytes of blobs, which a page and the pictures on it read once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from tensordb_data.blobs.segments.references import references_of
from tensordb_data.errors import NotFoundError
from tensordb_data.samples.sample import read_stored
from tensordb_data.schema.field import BlobField

if TYPE_CHECKING:
    from tensordb_data.samples.sample import Sample
    from tensordb_data.ui.view import View


def blob_key(view: View, sample: Sample, name: str) -> Hashable:
    """What a blob is known by: an `_id` alone may be deleted and written again."""
    reference = references_of(sample._doc).get(name)
    place = [reference.get(part) for part in ("k", "o", "n", "x")] if isinstance(reference, dict) else []
    return view.db.project, name, str(sample.id), str(place)


def stored(view: View, sample: Sample, name: str) -> bytes:
    """The stored bytes of a blob, decompressed; those that were read before come from memory.

    Raises:
        NotFoundError: The sample has no such blob.
        CorruptBlobError: It is damaged.
        StorageError: The blob store failed.
    """
    key = blob_key(view, sample, name)
    found = view.window.blobs.get(key)
    if found is None:
        read = read_stored([sample], name)[0]
        if read is None:
            raise NotFoundError(f"sample {sample.id} has no blob {name!r}")
        found = bytes(read)
        view.window.blobs.put(key, found)
    return found


def decoded(view: View, sample: Sample, name: str) -> Any:
    """The value of a blob, from its stored bytes.

    Raises:
        CorruptBlobError: As for `stored`; and where the bytes are no such value.
    """
    field = sample.blobs[name]
    return field.decode(stored(view, sample, name)) if isinstance(field, BlobField) else sample[name]
