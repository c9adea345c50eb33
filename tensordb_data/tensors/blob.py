"""Store one byte string of a document among the tensors: by its content, once in a project."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.tensors.leaf import Leaf
from tensordb_data.tensors.read import read_leaves
from tensordb_data.tensors.write import digest, store_tensors

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

    from tensordb_data.warehouse.context import Warehouse


def write_blob(
    warehouse: Warehouse,
    document: dict[str, Any],
    folder: str,
    data: bytes,
    insert: Callable[[ClientSession | None], None],
) -> None:
    """Make bytes durable, then call `insert` in a transaction that finds them live.

    Args:
        warehouse: The warehouse.
        document: The document that `insert` inserts; its `_tdb` gets the reference.
        folder: Of the object, if one has to be written.
        data: The bytes, at least one.
        insert: Inserts the document, in the session it is given.

    Raises:
        StorageError: The blob store failed; nothing was inserted.
        CheckpointError: A gc without a grace period has removed the bytes time and again.
    """
    content = digest(memoryview(data))
    document["_tdb"] |= {"blob": content, "tensors": [content]}
    leaf = Leaf("data", "bytes", "|u1", (len(data),), len(data), data)

    store_tensors(warehouse, folder, ObjectId(), {content: (leaf, memoryview(data))}, insert)


def read_blob(warehouse: Warehouse, content: bytes, label: str) -> bytes:
    """Read the bytes, and check them.

    Raises:
        CorruptBlobError: They do not match their checksum.
        StorageError: The blob store failed.
    """
    return read_leaves(warehouse, {0: ("data", bytes(content))}, label)[0].tobytes()
