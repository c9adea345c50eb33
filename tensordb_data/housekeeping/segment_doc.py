"""The document of a segment, from the object alone."""

from __future__ import annotations

from typing import Any

from tensordb_data.blobs.segments.format import (
    TRAILER_BYTES,
    SegmentDocuments,
    SegmentIndex,
    checksum_bytes,
)


def segment_doc(index: SegmentIndex, documents: SegmentDocuments, root: int, key: str, nbytes: int) -> dict[str, Any]:
    """The fields of the document of a live segment, but for `_id` and `created`.

    Args:
        index: What the object says of its blobs.
        documents: What it says of its samples.
        root: The blob root.
        key: The key of the object.
        nbytes: The size of the object.
    """
    size = index.nbytes
    roots = {"roots": list(index.roots)} if index.roots else {}
    return {
        "p": documents.project, "dataset": documents.dataset, "root": root, "key": key, "bytes": nbytes,
        "blobs": int(index.lengths.sum()), "index": [nbytes - size - TRAILER_BYTES, size],
        "sum": checksum_bytes(index.checksum), "n": len(documents.samples), "state": "live", **roots,
    }  # fmt: skip
