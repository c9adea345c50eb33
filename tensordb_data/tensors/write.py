"""Write tensors: those that are not stored yet go into objects, and the index gets their locations.

Tensors are content-addressed: bytes that the project has already stored, at another step or in another run, are not
stored again. New ones go into objects in safetensors layout. An object is durable before any document names it, and the
document that refers to the tensors is written last. So a process that is killed at any point leaves a whole set or
none. A large set has several objects. Each is entered into the index as soon as it is durable: after a crash or a lost
connection, its tensors are found by their content, and not sent again. Where it pays, a tensor is compressed with zstd;
its content address is still that of its own bytes.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xxhash
from bson import ObjectId
from pymongo import UpdateOne

from tensordb_data.common.chunks import chunks, runs_by_size
from tensordb_data.errors import CheckpointError
from tensordb_data.tensors import safetensors
from tensordb_data.tensors.compression import TensorCompressor
from tensordb_data.tensors.leaf import Leaf
from tensordb_data.tensors.lease import Lease, LeaseLost

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

    from tensordb_data.warehouse.context import Warehouse
    from tensordb_data.warehouse.documents.blobs import BlobState, TensorDocument, TensorId

log = logging.getLogger("tensordb_data.checkpoint")
OBJECT = 128 << 20  # bytes an object holds, unless one tensor alone is larger: what a crash may have to send again
TENSORS_AT_ONCE = 5_000
"""Tensor documents in one query or insert: far below the 16 MB of a message."""
_ATTEMPTS = 5


def digest(data: memoryview) -> bytes:
    """The content address of a tensor: xxh3-128 of its bytes."""
    hasher = xxhash.xxh3_128()
    hasher.update(data)  # unlike the function that does both, it leaves the GIL to the training loop
    return hasher.digest()


def tensor_id(project: str, content: bytes) -> TensorId:
    """The `_id` of a tensor document."""
    return {"p": project, "h": content}


def store_tensors(
    warehouse: Warehouse,
    folder: str,
    id: ObjectId,
    tensors: Mapping[bytes, tuple[Leaf, memoryview]],
    insert: Callable[[ClientSession | None], None],
    compressor: TensorCompressor | None = None,
    run: str | None = None,
    also: Sequence[bytes] = (),
) -> int:
    """Store the tensors that are not stored yet, then call `insert` in a transaction that finds all of them live.

    Args:
        warehouse: The warehouse.
        folder: The folder of the objects.
        id: A new id, which names the objects.
        tensors: The tensors, by their content addresses.
        insert: Inserts the document that refers to them, in the given session.
        compressor: Compresses tensors; by default without a limit on its time.
        run: The run of new tensors; tensors that are stored already keep theirs.
        also: Other tensors that the document refers to, which were stored under a lease that is still held.

    Returns:
        Bytes that were stored.

    Raises:
        StorageError: The blob store failed.
        CheckpointError: The tensors were removed time and again.
    """
    stored = 0
    compressor = compressor or TensorCompressor()
    warehouse.index.make("tensors", folder)
    for attempt in range(_ATTEMPTS):
        with contextlib.suppress(LeaseLost, _TensorGone), Lease(warehouse, ObjectId() if attempt else id) as lease:
            missing = _missing(warehouse, list(tensors), lease)
            whole = True
            for number, batch in enumerate(_objects(tensors, missing)):
                key = f"{folder}/{lease.id}-{number}.safetensors" if number else f"{folder}/{lease.id}.safetensors"
                lease.announce(warehouse.blobs.write_root, key)
                rows = _put(warehouse, key, batch, lease.began, run, compressor)
                whole &= _enter(warehouse, rows, lease) == len(rows)
                stored += sum(row["n"] for row in rows.values())
            references = list(dict.fromkeys((*tensors, *also)))
            warehouse.index.transaction(_finish(warehouse, references, lease, insert))
            lease.clean = whole
            return stored
        log.warning("a save began again, attempt %d: it was taken for dead", attempt + 1)
    raise CheckpointError(
        f"What was to be saved could not be committed: its tensors were removed {_ATTEMPTS} times while it was written"
    )


def _finish(
    warehouse: Warehouse, references: Sequence[bytes], lease: Lease, insert: Callable[[ClientSession | None], None]
) -> Callable[[ClientSession | None], None]:
    def work(session: ClientSession | None) -> None:
        lease.hold(session)
        if _live(warehouse, references, session) < len(references):
            # They were marked since `_missing`, so a gc does not remove them as long as this lease is held.
            _revive(warehouse, references, session)
            if _live(warehouse, references, session) < len(references):
                raise _TensorGone
        insert(session)

    return work


class _TensorGone(Exception):
    """A tensor to which the new document refers is not live any more."""


def _missing(warehouse: Warehouse, contents: Sequence[bytes], lease: Lease) -> list[bytes]:
    """Find the tensors that are not stored, and make dying ones live again.

    The lease protects tensors that are marked from here on.
    """
    found = _states(warehouse, contents)
    dying = [content for content, state in found.items() if state != "live"]
    if dying:

        def revive(session: ClientSession | None) -> None:
            lease.hold(session)
            _revive(warehouse, dying, session)

        warehouse.index.transaction(revive)
        found = _states(warehouse, contents)
    return [content for content in contents if content not in found]


def _states(warehouse: Warehouse, contents: Sequence[bytes]) -> dict[bytes, BlobState]:
    tensors = warehouse.index["tensors"]
    return {
        bytes(row["_id"]["h"]): row["state"]
        for chunk in chunks(contents, TENSORS_AT_ONCE)
        for row in tensors.find({"_id": {"$in": [tensor_id(warehouse.project, each) for each in chunk]}}, {"state": 1})
    }


def _put(
    warehouse: Warehouse,
    key: str,
    batch: Mapping[bytes, tuple[Leaf, memoryview]],
    created: dt.datetime,
    run: str | None,
    compressor: TensorCompressor,
) -> dict[bytes, TensorDocument]:
    """Write one object; returns the documents of its tensors."""
    names: set[str] = set()
    leaves, parts, compressed = [], [], {}
    for content, (leaf, data) in batch.items():
        name = leaf.name if leaf.name not in names else f"{leaf.name}#{content.hex()}"
        names.add(name)
        small = compressor.compress(leaf, data)
        if small is not None:
            compressed[name] = [leaf.dtype, list(leaf.shape)]
            leaf, data = Leaf(name, "bytes", "|u1", (len(small),), len(small), small), memoryview(small)
        leaves.append(leaf._replace(name=name))
        parts.append(data)
    metadata = {"format": "tensordb", "project": warehouse.project}
    if compressed:
        metadata["zstd"] = json.dumps(compressed)
    # tensors that were not compressed come first: they then lie in the object as they lie in memory
    order = sorted(range(len(parts)), key=lambda i: leaves[i].name in compressed)
    address = np.frombuffer(parts[order[0]], np.uint8).ctypes.data
    front, offsets = safetensors.header([leaves[i] for i in order], metadata, address)
    warehouse.blobs.store(warehouse.blobs.write_root).put(key, [front, *(parts[i] for i in order)], cold=True)
    contents = list(batch)
    rows: dict[bytes, TensorDocument] = {}
    for i, offset in zip(order, offsets, strict=True):
        leaf, content = leaves[i], contents[i]
        rows[content] = {
            "_id": tensor_id(warehouse.project, content), "root": warehouse.blobs.write_root, "key": key,
            "o": offset, "n": leaf.nbytes, "state": "live", "created": created,
        }  # fmt: skip
        if run is not None:
            rows[content]["run"] = run
        if leaf.name in compressed:
            rows[content]["z"] = batch[content][0].nbytes
    return rows


def _objects(
    tensors: Mapping[bytes, tuple[Leaf, memoryview]], missing: Sequence[bytes]
) -> Iterator[dict[bytes, tuple[Leaf, memoryview]]]:
    """The tensors to store, in the given order, grouped by object."""
    for low, high in runs_by_size((tensors[content][0].nbytes for content in missing), OBJECT):
        yield {content: tensors[content] for content in missing[low:high]}


def _enter(warehouse: Warehouse, placed: Mapping[bytes, TensorDocument], lease: Lease) -> int:
    """Enter new tensors into the index, if the lease still protects their object; returns how many were new.

    This comes before the document of their set. If that is never written, they need not be stored again.
    """
    tensors = warehouse.index["tensors"]
    entered = 0
    for chunk in chunks(list(placed.values()), TENSORS_AT_ONCE):
        # A tensor that another save has stored in the meantime stays as it is.
        upserts = [
            ({"_id": row["_id"]}, {"$setOnInsert": {key: value for key, value in row.items() if key != "_id"}})
            for row in chunk
        ]
        if warehouse.index.is_server:
            writes = [UpdateOne(filter, update, upsert=True) for filter, update in upserts]

            def enter(session: ClientSession | None, writes: Sequence[UpdateOne] = writes) -> int:
                lease.hold(session)
                return tensors.bulk_write(list(writes), ordered=False, session=session).upserted_count

            entered += warehouse.index.transaction(enter)
        else:  # mongomock cannot read pymongo's bulk operations
            for filter, update in upserts:
                tensors.update_one(filter, update, upsert=True)
            entered += len(chunk)
    return entered


def _revive(warehouse: Warehouse, contents: Sequence[bytes], session: ClientSession | None) -> None:
    """Make dying tensors live again. Their objects exist as long as their documents do."""
    for chunk in chunks(contents, TENSORS_AT_ONCE):
        warehouse.index["tensors"].update_many(
            {"_id": {"$in": [tensor_id(warehouse.project, content) for content in chunk]}, "state": "dying"},
            {"$set": {"state": "live"}, "$unset": {"dying": ""}},
            session=session,
        )


def _live(warehouse: Warehouse, contents: Sequence[bytes], session: ClientSession | None) -> int:
    return sum(
        warehouse.index["tensors"].count_documents(
            {"_id": {"$in": [tensor_id(warehouse.project, content) for content in chunk]}, "state": "live"},
            session=session,
        )
        for chunk in chunks(contents, TENSORS_AT_ONCE)
    )
