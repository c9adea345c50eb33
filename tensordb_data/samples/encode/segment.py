"""The segment of a commit, or of a compaction, on its way into the store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bson import ObjectId
from pymongo.errors import PyMongoError

from tensordb_data.blobs.segments.format import MAGIC, SegmentBuilder
from tensordb_data.errors import StorageError

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse


def put_segment(
    warehouse: Warehouse,
    dataset: str,
    id: ObjectId,
    builder: SegmentBuilder,
    samples: Sequence[Mapping[str, Any] | bytes],
    n: int,
) -> None:
    """Make a segment durable, in the state "writing": no sample refers to it yet; see `announce_segment`.

    Raises:
        StorageError: The blob store failed; nothing is left of it.
    """
    announce_segment(warehouse, dataset, id, builder, samples, n)()


def announce_segment(
    warehouse: Warehouse,
    dataset: str,
    id: ObjectId,
    builder: SegmentBuilder,
    samples: Sequence[Mapping[str, Any] | bytes],
    n: int,
) -> Callable[[], None]:
    """Name a segment in the index, in the state "writing": no sample refers to it yet.

    Args:
        warehouse: The warehouse.
        dataset: The dataset.
        id: The `_id` of the segment.
        builder: Its blobs.
        samples: The documents of its samples, or many of them together in BSON.
        n: How many samples these are.

    Returns:
        What makes it durable. It raises a `StorageError` if the blob store fails, and then nothing is left of it.
    """
    blobs = builder.nbytes - len(MAGIC)
    packed = builder.finish(samples)
    root, key = warehouse.blobs.write_root, f"segments/{id}"
    doc = {
        "p": warehouse.project, "dataset": dataset, "root": root, "key": key, "bytes": packed.nbytes,
        "blobs": blobs, "index": list(packed.index), "sum": packed.index_checksum,
        "n": n, "state": "writing", **({"roots": list(packed.roots)} if packed.roots else {}),
    }  # fmt: skip
    # The index names a segment before it exists, so that a gc finds one without samples. It uses the server's clock.
    warehouse.index["segments"].update_one(
        {"_id": id}, {"$setOnInsert": doc, "$currentDate": {"created": True}}, upsert=True
    )

    def put() -> None:
        try:
            warehouse.blobs.store(root).put(key, packed.parts)
        except StorageError:
            drop_segment(warehouse, id)
            raise

    return put


def drop_segment(warehouse: Warehouse, id: ObjectId) -> None:
    """Remove a segment to which no sample refers, and none will."""
    with contextlib.suppress(StorageError, PyMongoError):
        warehouse.blobs.delete(warehouse.blobs.write_root, f"segments/{id}")
        warehouse.index["segments"].delete_one({"_id": id, "state": "writing"})
