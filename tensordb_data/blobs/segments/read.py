"""Read what a segment says of itself, from the object alone."""

from __future__ import annotations

from tensordb_data.blobs.segments.format import (
    MAGIC,
    TRAILER_BYTES,
    SegmentDocuments,
    SegmentIndex,
    Trailer,
    check_magic,
    read_documents,
    read_index,
    read_trailer,
)
from tensordb_data.blobs.segments.reference_format import REFERENCES, read_references
from tensordb_data.blobs.stores.base import Store
from tensordb_data.errors import CorruptBlobError


def read_segment(store: Store, key: str) -> tuple[SegmentIndex, SegmentDocuments]:
    """What a segment says of itself, from the object alone: its index and its documents.

    The index of a reference segment is a `ReferenceIndex`.

    Raises:
        CorruptBlobError: the object is not a whole segment of this version.
        StorageError: the store does not have it.
    """
    name = f"{store.url}/{key}"
    trailer, refers = _trailer(store, key, name)
    offsets, lengths = zip(trailer.index, trailer.documents, strict=False)
    index, documents = store.get_ranges(key, offsets, lengths)
    found = read_references(index, trailer, name) if refers else read_index(index, trailer, name)
    return found, read_documents(documents, trailer, name)


def read_segment_index(store: Store, key: str) -> SegmentIndex:
    """The index alone; see `read_segment`, for its errors too."""
    name = f"{store.url}/{key}"
    trailer, refers = _trailer(store, key, name)
    (index,) = store.get_ranges(key, [trailer.index[0]], [trailer.index[1]])
    return read_references(index, trailer, name) if refers else read_index(index, trailer, name)


def _trailer(store: Store, key: str, name: str) -> tuple[Trailer, bool]:
    """The trailer, and whether the segment refers to files of others."""
    size = store.size(key)
    if size < len(MAGIC) + TRAILER_BYTES:
        raise CorruptBlobError(f"{name}: expected a segment, found {size} bytes, fewer than its trailer")
    head, tail = store.get_ranges(key, [0, size - TRAILER_BYTES], [len(MAGIC), TRAILER_BYTES])
    refers = bytes(head) == REFERENCES
    if not refers:
        check_magic(head, name)
    return read_trailer(tail, size, name, REFERENCES if refers else MAGIC), refers
