"""Tensors of checkpoints, architectures and frozen sets: each is known, is where it should be, and matches its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import zstandard

from tensordb_data.common.chunks import chunks, runs_by_size
from tensordb_data.errors import StorageError
from tensordb_data.frozen.frozen_set import label_of
from tensordb_data.housekeeping.fsck.walk import BATCH, ROUND, Doc, Walk, kind_of
from tensordb_data.params.load import describe
from tensordb_data.tensors.compression import decompress
from tensordb_data.tensors.read import TensorLocation
from tensordb_data.tensors.write import TENSORS_AT_ONCE, digest, tensor_id


class ParamsCheck:
    """Of what `db.params` and `db.architectures` have."""

    def __init__(self, walk: Walk) -> None:
        self._walk, self._report = walk, walk.report

    def tensors(self) -> None:
        """Every tensor is where its document says, and is what its name says."""
        group: list[Doc] = []
        for doc in self._walk.sound("tensors", {"state": {"$in": ["live", "dying"]}}, None, [("key", 1)]):
            self._report.tensors += 1
            with self._walk.document("tensors", doc):
                TensorLocation.from_doc("", bytes(doc["_id"]["h"]), doc)
                if group and ((doc["key"], doc["root"]) != (group[0]["key"], group[0]["root"]) or len(group) == BATCH):
                    self._object(group)
                    group = []
                group.append(doc)
        if group:
            self._object(group)

    def _object(self, group: Sequence[Doc]) -> None:
        key, whole = group[0]["key"], []
        store = self._walk.store(group[0])
        if store is None:
            return
        try:
            size = store.size(key)
        except StorageError as error:
            self._lost(f"{store.url}/{key}", group, error)
            return
        for doc in group:
            with self._walk.document("tensors", doc):
                TensorLocation.from_doc(key, bytes(doc["_id"]["h"]), doc).check_within(size, self._users([doc]))
                whole.append(doc)
        if self._walk.quick:
            return
        for low, high in runs_by_size((doc["n"] for doc in whole), ROUND):
            some = whole[low:high]
            try:
                parts = store.get_ranges(key, [doc["o"] for doc in some], [doc["n"] for doc in some])
            except StorageError as error:
                self._lost(f"{store.url}/{key}", some, error)
                return
            for doc, part in zip(some, parts, strict=True):
                self._report.bytes += doc["n"]
                if _content(doc, part) != bytes(doc["_id"]["h"]):
                    what = f"the stored bytes do not match their checksum ({self._users([doc])})"
                    self._report.find("damaged blob", f"{store.url}/{key} at {doc['o']}, {doc['n']} bytes", what)

    def _lost(self, where: str, tensors: Sequence[Doc], error: StorageError) -> None:
        """Tensors whose object cannot be read, unless a gc has removed it meanwhile."""
        still = {"_id": {"$in": [doc["_id"] for doc in tensors]}, "key": tensors[0]["key"]}
        if self._walk.mongo["tensors"].find_one(still):
            self._report.find(kind_of(error), where, f"{error} ({self._users(tensors)})")

    def _users(self, tensors: Sequence[Doc]) -> str:
        contents, project = [doc["_id"]["h"] for doc in tensors], tensors[0]["_id"]["p"]
        used = {"_tdb.p": project, "_tdb.tensors": {"$in": contents}}
        sets = list(self._walk.mongo["params"].find(used, {"run": 1, "step": 1}).limit(4))
        others = list(self._walk.mongo["architectures"].find(used, {"name": 1, "version": 1}).limit(4))
        rows = list(self._walk.mongo["logs"].find(used, {"run": 1, "step": 1}).limit(4))
        frozen = list(self._walk.mongo["frozen"].find(used, {"name": 1}).limit(4))
        names = [*map(describe, sets), *map(_architecture, others), *map(_row, rows), *map(label_of, frozen)]
        return "used by " + (", ".join(names[:3]) or "nothing") + (" and others" if len(names) > 3 else "")

    def sets(self, name: str) -> None:
        """Every tensor that a document refers to is known."""
        for doc in self._walk.sound(name, {}, {"_tdb": 1, "run": 1, "step": 1, "name": 1, "version": 1}):
            self._report.sets += 1
            with self._walk.document(name, doc):
                self._set(name, doc)

    def rows(self) -> None:
        """Every tensor that a row of a log refers to is known."""
        with_arrays = {"_tdb.tensors": {"$exists": True}}
        for doc in self._walk.sound("logs", with_arrays, {"_tdb": 1, "run": 1, "step": 1}):
            with self._walk.document("logs", doc):
                self._set("logs", doc)

    def _set(self, name: str, doc: Doc) -> None:
        contents, project = doc["_tdb"].get("tensors", ()), doc["_tdb"]["p"]
        wanted = {_digest(content) for content in contents}
        known = {
            bytes(row["_id"]["h"])
            for chunk in chunks(contents, TENSORS_AT_ONCE)
            for row in self._walk.mongo["tensors"].find({"_id": {"$in": [tensor_id(project, each) for each in chunk]}})
        }
        absent = len(wanted - known)
        if absent and self._walk.mongo[name].find_one({"_id": doc["_id"]}, {"_id": 1}):
            where = _NAMES[name](doc)
            self._report.find(
                "dangling reference", where, f"{absent} of its {len(contents)} tensors are not in the index"
            )


def _content(tensor: Doc, stored: memoryview) -> bytes | None:
    """The digest of a tensor that is stored so; None if it cannot be had."""
    if tensor.get("z") is None:
        return digest(stored)
    try:
        return decompress(stored, None, tensor["z"])
    except zstandard.ZstdError:
        return None


def _digest(content: object) -> bytes:
    if not isinstance(content, bytes):
        raise TypeError(f"expected the digest of a tensor, found {content!r}")
    return content


def _architecture(doc: Doc) -> str:
    return f"architecture {doc['name']!r} version {doc.get('version')}"


def _row(doc: Doc) -> str:
    return f"row of run {doc['run']!r} at step {doc.get('step')}"


_NAMES: Mapping[str, Callable[[Doc], str]] = {
    "params": describe, "architectures": _architecture, "logs": _row, "frozen": label_of,
}  # fmt: skip
