"""fsck: check that every reference leads to bytes, and that all bytes match their checksums; report what does not.

It changes nothing, and may run beside writers and gc. It checks a finding again before it reports it, since a gc may
have removed the object in the meantime. It reads all bytes, in pieces, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bson import ObjectId

from tensordb_data.blobs.stores.base import Store
from tensordb_data.common.chunks import batched
from tensordb_data.housekeeping.fsck.data import DataCheck
from tensordb_data.housekeeping.fsck.frozen import FrozenCheck
from tensordb_data.housekeeping.fsck.params import ParamsCheck
from tensordb_data.housekeeping.fsck.report import Checked
from tensordb_data.housekeeping.fsck.walk import BATCH, Progress, Walk
from tensordb_data.tensors.lease import SECONDS
from tensordb_data.warehouse.deletion_log import FOLDER, read

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse


def check(warehouse: Warehouse, progress: Progress | None = None, *, quick: bool = False) -> Checked:
    """See `TensorDB.fsck`."""
    walk = Walk(warehouse, progress or (lambda what, done, total: None), quick=quick)
    data, params, rest = DataCheck(walk), ParamsCheck(walk), _RestCheck(walk)
    data.segments()
    data.samples()
    params.tensors()
    params.sets("params")
    params.sets("architectures")
    params.rows()
    params.sets("frozen")
    FrozenCheck(walk, data).sets()
    rest.tombstones()
    rest.leftovers()
    rest.unknown_objects()
    return walk.report


class _RestCheck:
    """Of what is remembered, was left over, or belongs to nobody."""

    def __init__(self, walk: Walk) -> None:
        self._walk, self._report = walk, walk.report

    def tombstones(self) -> None:
        """What is remembered of deletions can be read."""
        for doc in self._walk.sound("tombstones", {"state": "live"}):
            store = self._walk.store(doc)
            if store is None:
                continue
            with self._walk.document("tombstones", doc):
                read(store, doc["key"])

    def leftovers(self) -> None:
        """What was begun and never ended; the next gc sees to it."""
        silent = {"$subtract": ["$$NOW", int(SECONDS * 1000)]}
        writing = {"state": "writing", "$expr": {"$lt": ["$created", silent]}}
        for filter, what in ((writing, "its writer never came back"), ({"state": "gone"}, "a gc was stopped")):
            for doc in self._walk.mongo["segments"].find(filter, {"key": 1, "state": 1}):
                text = f"in state {doc['state']!r}: {what}; the next gc removes it"
                self._report.find("leftover", str(doc.get("key")), text)
        for doc in self._walk.mongo["leases"].find({"state": "held", "$expr": {"$lt": ["$until", "$$NOW"]}}):
            self._report.find("leftover", f"lease {doc['_id']}", "its saver never came back; the next gc ends it")
        for root in self._walk.warehouse.blobs.opened:
            store = self._walk.warehouse.blobs.store(root["id"])
            count, nbytes = store.sweep(SECONDS, dry_run=True)
            if count:
                self._report.find(
                    "leftover", store.url, f"{count} halves of objects ({nbytes:,} bytes); the next gc removes them"
                )

    def unknown_objects(self) -> None:
        """Objects are named in the index before they are written: those that are not belong to nobody."""
        for root in self._walk.warehouse.blobs.opened:
            store = self._walk.warehouse.blobs.store(root["id"])
            for folder in ("segments/", "params/", "architectures/", "logs/", "frozen/", FOLDER):
                for keys in batched((key for key, _ in store.list(folder)), BATCH):
                    self._unknown(store, keys)

    def _unknown(self, store: Store, keys: Sequence[str]) -> None:
        ids = [ObjectId(name) for key in keys if ObjectId.is_valid(name := key.rsplit("/", 1)[1])]
        known = {doc["key"] for doc in self._walk.mongo["segments"].find({"_id": {"$in": ids}}, {"key": 1})}
        known |= {doc["key"] for doc in self._walk.mongo["tombstones"].find({"_id": {"$in": ids}}, {"key": 1})}
        known |= set(self._walk.mongo["tensors"].distinct("key", {"key": {"$in": list(keys)}}))
        rest = [key for key in keys if key not in known]
        for lease in self._walk.mongo["leases"].find({"objects.key": {"$in": rest}}) if rest else ():
            known |= {at["key"] for at in lease["objects"]}
        for key in keys:
            if key not in known:
                self._report.find("unknown object", f"{store.url}/{key}", "nothing in the index names it")
