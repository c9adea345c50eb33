"""What the index knows of a frozen set besides its pieces: its counts, and the segments that a gc keeps for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from bson import ObjectId

from tensordb_data.common.chunks import chunks
from tensordb_data.errors import StorageError
from tensordb_data.frozen.frozen_set import FrozenSet
from tensordb_data.frozen.structure import BLOB, VALUE, Structure

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_NAMED = 1000  # segments in one document


def counted(structure: Structure, nbytes: int) -> dict[str, Any]:
    """The fields of the document of a set that its structure tells."""
    shown = (name.split(" ", 1)[1] for name in structure.columns if name.startswith((VALUE, BLOB)))
    return {
        "count": structure.count, "holes": structure.holes, "fields": list(dict.fromkeys(shown)),
        "fingerprint": structure.fingerprint, "bytes": nbytes,
    }  # fmt: skip


def hold_segments(warehouse: Warehouse, set: ObjectId, segments: Sequence[ObjectId], session: Any) -> None:
    """In a transaction, make the segments of a set live, and name them, so that a gc keeps them.

    Raises:
        StorageError: One of them is gone.
    """
    found = warehouse.index["segments"]
    live = {"$set": {"state": "live"}, "$inc": {"v": 1}, "$unset": {"dying": ""}}
    for some in chunks(segments, _NAMED):
        # A write, not only a look: a gc that has just found one of them unused conflicts with it.
        there = {"_id": {"$in": list(some)}, "state": {"$in": ["writing", "live", "dying"]}}
        done = found.update_many(there, live, session=session).matched_count
        if done < len(some):
            raise StorageError(
                f"{len(some) - done} of the segments to which the samples refer are not in the warehouse: run fsck,"
                " which names the samples, and leave them out"
            )
    for names in name_segments(warehouse, set, segments):
        warehouse.index["frozen_segments"].insert_one(names, session=session)


def name_segments(warehouse: Warehouse, set: ObjectId, segments: Sequence[ObjectId]) -> Iterator[dict[str, Any]]:
    """The documents that name the segments of a set."""
    for some in chunks(segments, _NAMED):
        yield {"_id": ObjectId(), "p": warehouse.project, "set": set, "k": list(some)}


def segments_of(found: FrozenSet) -> Iterator[ObjectId]:
    """The segments to which a set refers, each once."""
    seen: set[ObjectId] = set()
    for block in found.blocks(()):
        for refs in block.refs.values():
            there = np.unique(refs.segment[refs.length >= 0]).tolist()
            new = {refs.segments[at] for at in there} - seen
            seen |= new
            yield from new
