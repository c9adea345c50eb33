"""Segments in a store, and a reader over them, for the tests of blobs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from bson import ObjectId

from tensordb_data.blobs.reader.disk_cache import SegmentCache
from tensordb_data.blobs.reader.reader import BlobReader
from tensordb_data.blobs.segments.format import SegmentBuilder
from tensordb_data.blobs.segments.references import BlobRefs
from tensordb_data.blobs.stores.base import Store


@dataclasses.dataclass
class Shelf:
    """Segments in one store with the documents that a database would have of them."""

    store: Store
    cache: SegmentCache | None = None
    segments: dict[ObjectId, dict[str, Any]] = dataclasses.field(default_factory=dict)
    finds: int = 0

    def put(self, blobs: Sequence[bytes], compress: int | Sequence[int | None] | None = None) -> list[dict[str, Any]]:
        """Write one segment; the references to its blobs, as sample documents have them."""
        levels = [compress] * len(blobs) if compress is None or isinstance(compress, int) else compress
        builder, id = SegmentBuilder("p", "d", {"x": {"kind": "bytes"}}), ObjectId()
        found = [builder.add(blob, level) for blob, level in zip(blobs, levels, strict=True)]
        refs = [{"k": id, "o": o, "n": n, **({"z": True} if z else {})} for o, n, z in found]
        made = builder.finish([{"label": i} for i in range(len(blobs))])
        assert made.nbytes == sum(map(len, made.parts))
        self.store.put(f"segments/{id}", made.parts)
        self.segments[id] = {
            "_id": id, "root": 0, "key": f"segments/{id}", "bytes": made.nbytes, "index": list(made.index),
            "sum": made.index_checksum,
        }  # fmt: skip
        return refs

    def find(self, ids: Sequence[ObjectId]) -> list[dict[str, Any]]:
        self.finds += 1
        return [self.segments[id] for id in ids if id in self.segments]

    def reader(self, **options: int) -> BlobReader:
        return BlobReader(self.find, lambda root: self.store, cache=self.cache, **options)

    def key(self, ref: dict[str, Any]) -> str:
        return str(self.segments[ref["k"]]["key"])


def shuffled(docs: Sequence[dict[str, Any]], seed: int = 0) -> tuple[BlobRefs, list[int]]:
    """References to all of them in a random order, some twice, and that order."""
    order = np.random.default_rng(seed).integers(0, len(docs), 2 * len(docs) + 1).tolist()
    return BlobRefs.from_docs([docs[i] for i in order]), order
