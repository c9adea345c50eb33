"""How many bytes checkpoints take, and how many of them others have, too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.common.chunks import chunks
from tensordb_data.common.html import Report
from tensordb_data.common.options import is_number
from tensordb_data.errors import CorruptBlobError
from tensordb_data.mongo.retry import read_all
from tensordb_data.params.load import describe
from tensordb_data.warehouse.bound_query import reported

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery
    from tensordb_data.warehouse.context import Warehouse

_CHUNK = 5_000
_ALL = 20_000  # tensors above which all checkpoints of the project are looked at


@dataclass(frozen=True)
class SetSize(Report):
    """The bytes of one checkpoint."""

    bytes: int
    """Of its tensors, as they are in memory."""
    unique: int
    """Stored bytes of the tensors that no other checkpoint of the project has: what deleting it makes free."""
    shared: int
    """Stored bytes of the others."""


def sizes(bound: BoundQuery) -> dict[ObjectId, SetSize]:
    """See `Params.sizes`."""
    with reported(bound.query):
        docs = read_all(bound.cursor({"_tdb.tensors": 1, "_tdb.bytes": 1, "run": 1, "step": 1}))
    tensors = {doc["_id"]: _tensors(doc) for doc in docs}
    wanted = set().union(*tensors.values()) if tensors else set()
    stored, uses = _stored(bound.warehouse, sorted(wanted)), _uses(bound.warehouse, wanted)
    found: dict[ObjectId, SetSize] = {}
    for doc in docs:
        own = tensors[doc["_id"]]
        unique = sum(stored.get(digest, 0) for digest in own if uses[digest] < 2)
        total = sum(stored.get(digest, 0) for digest in own)
        found[doc["_id"]] = SetSize(int(doc["_tdb"]["bytes"]), unique, total - unique)
    return found


def _tensors(doc: Mapping[str, Any]) -> set[bytes]:
    """The content addresses of a checkpoint.

    Raises:
        CorruptBlobError: Another tool has written something else.
    """
    found, nbytes = doc["_tdb"].get("tensors"), doc["_tdb"].get("bytes")
    if not isinstance(found, list) or not all(isinstance(each, bytes) for each in found) or not is_number(nbytes):
        raise CorruptBlobError(
            f"{describe(doc)} is damaged: expected its tensors and bytes in _tdb, found {found!r:.200}"
        )
    return set(found)


def _stored(warehouse: Warehouse, digests: Sequence[bytes]) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for some in chunks(digests, _CHUNK):
        named = {"_id": {"$in": [{"p": warehouse.project, "h": digest} for digest in some]}}
        rows: Iterable[Any] = read_all(warehouse.index["tensors"].find(named, {"n": 1}))
        found.update((bytes(row["_id"]["h"]), int(row["n"])) for row in rows)
    return found


def _uses(warehouse: Warehouse, digests: set[bytes]) -> Counter[bytes]:
    """In how many checkpoints and architectures each tensor is."""
    uses: Counter[bytes] = Counter()
    scope: dict[str, Any] = {"_tdb.p": warehouse.project}
    if len(digests) <= _ALL:
        scope["_tdb.tensors"] = {"$in": sorted(digests)}
    for name in ("params", "architectures"):
        for doc in read_all(warehouse.index[name].find(scope, {"_tdb.tensors": 1})):
            uses.update(digests.intersection(map(bytes, doc["_tdb"].get("tensors", ()))))
    return uses
