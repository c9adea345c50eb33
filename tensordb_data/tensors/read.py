"""Read tensors by their digests, and check each of them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
import zstandard

from tensordb_data.common.chunks import chunks, runs_by_size
from tensordb_data.errors import CheckpointError, CorruptBlobError, StorageError
from tensordb_data.tensors.compression import decompress
from tensordb_data.tensors.write import TENSORS_AT_ONCE, digest, tensor_id

if TYPE_CHECKING:
    from tensordb_data.blobs.stores.base import Store
    from tensordb_data.warehouse.context import Warehouse
    from tensordb_data.warehouse.documents import TensorDocument

_PIECE = 1 << 20  # bytes copied, then hashed while the processor's cache still holds them
_ROUND = 256 << 20  # bytes asked of a remote store at once
THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class TensorLocation:
    """Where the bytes of a tensor are stored."""

    name: str
    content: bytes
    root: int
    key: str
    offset: int
    nbytes: int
    """Stored bytes."""
    original_nbytes: int | None
    """Bytes of the tensor, if the stored ones are compressed."""

    @property
    def tensor_nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.nbytes if self.original_nbytes is None else self.original_nbytes


def read_leaves(
    warehouse: Warehouse, stored: Mapping[int, tuple[str, bytes]], label: str
) -> dict[int, np.ndarray[Any, Any]]:
    """Read tensors, and check their bytes.

    Args:
        warehouse: The warehouse.
        stored: Name and digest of each tensor, by its number.
        label: What the tensors belong to, for messages.

    Returns:
        The bytes of each tensor, uint8 [n], by its number.

    Raises:
        CheckpointError: The warehouse does not have one of them any more.
        CorruptBlobError: Stored bytes do not match their digest.
        StorageError: The blob store failed.
    """
    locations = find_locations(warehouse, stored, label)
    objects: dict[tuple[int, str], list[int]] = defaultdict(list)
    for number, location in locations.items():
        objects[location.root, location.key].append(number)
    memory = {number: np.empty(location.tensor_nbytes, np.uint8) for number, location in locations.items()}

    with ThreadPoolExecutor(THREADS, thread_name_prefix="tensordb-load") as pool:
        for (root, key), numbers in objects.items():
            store = warehouse.blobs.store(root)
            fill = _fill_local if store.local_path(key) is not None else _fill_remote
            fill(pool, store, key, [locations[n] for n in numbers], [memory[n] for n in numbers], label)
    return memory


def find_locations(
    warehouse: Warehouse, stored: Mapping[int, tuple[str, bytes]], label: str
) -> dict[int, TensorLocation]:
    """Find where tensors are stored.

    Raises:
        CheckpointError: The warehouse does not have one of them any more.
    """
    rows: dict[bytes, TensorDocument] = {}
    contents = list({content for _, content in stored.values()})
    for chunk in chunks(contents, TENSORS_AT_ONCE):
        ids = [tensor_id(warehouse.project, content) for content in chunk]
        rows.update((bytes(row["_id"]["h"]), row) for row in warehouse.index["tensors"].find({"_id": {"$in": ids}}))
    locations = {}
    for number, (name, content) in stored.items():
        if (row := rows.get(content)) is None:
            raise CheckpointError(
                f"Tensor {name!r} of {label} is not in the warehouse any more: the set is incomplete."
            )
        locations[number] = TensorLocation(name, content, row["root"], row["key"], row["o"], row["n"], row.get("z"))
    return locations


def _fill_local(
    pool: ThreadPoolExecutor,
    store: Store,
    key: str,
    locations: list[TensorLocation],
    memory: list[np.ndarray[Any, Any]],
    label: str,
) -> None:
    file = open_local(store, key, label)
    try:
        # threads split the work by tensor: reading and hashing both release the GIL
        for _ in pool.map(lambda pair: pread(file, pair[0], pair[1], label), zip(locations, memory, strict=True)):
            pass
    finally:
        os.close(file)


def open_local(store: Store, key: str, label: str) -> int:
    """Open an object that is a file on this machine; returns the descriptor."""
    path = store.local_path(key)
    assert path is not None
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise StorageError(f"The object {key} that holds tensors of {label} is gone from {store.url}.") from None


def pread(file: int, location: TensorLocation, memory: np.ndarray[Any, Any], label: str) -> None:
    """Read a tensor into memory of its size, and check it."""
    compressed = location.original_nbytes is not None
    target, hasher, done = np.empty(location.nbytes, np.uint8).data if compressed else memory.data, xxhash.xxh3_128(), 0
    while done < location.nbytes:
        got = os.preadv(file, [target[done : done + _PIECE]], location.offset + done)
        if got == 0:
            raise corrupt(location, label, f"the object ends {location.nbytes - done} bytes too early")
        if not compressed:
            hasher.update(target[done : done + got])
        done += got
    if compressed:
        _decompress(location, target, memory, label)
    elif hasher.digest() != location.content:
        raise corrupt(location, label, "its bytes do not match their checksum")


def _decompress(location: TensorLocation, stored: memoryview, memory: np.ndarray[Any, Any], label: str) -> None:
    try:
        content = decompress(stored, memory.data, len(memory))
    except zstandard.ZstdError as error:
        raise corrupt(location, label, f"its bytes are not what was compressed: {error}") from None
    if content != location.content:
        raise corrupt(location, label, "its bytes do not match their checksum")


def _fill_remote(
    pool: ThreadPoolExecutor,
    store: Store,
    key: str,
    locations: list[TensorLocation],
    memory: list[np.ndarray[Any, Any]],
    label: str,
) -> None:
    for low, high in runs_by_size((location.nbytes for location in locations), _ROUND):
        group = range(low, high)
        got = store.get_ranges(key, [locations[i].offset for i in group], [locations[i].nbytes for i in group])
        for i, data in zip(group, got, strict=True):
            if len(data) != locations[i].nbytes:
                raise corrupt(locations[i], label, f"{len(data)} of {locations[i].nbytes} bytes are there")
            if locations[i].original_nbytes is not None:
                _decompress(locations[i], data, memory[i], label)
                continue
            memory[i][:] = np.frombuffer(data, np.uint8)
            if digest(memory[i].data) != locations[i].content:
                raise corrupt(locations[i], label, "its bytes do not match their checksum")


def corrupt(location: TensorLocation, label: str, what: str) -> CorruptBlobError:
    """The error to raise for a tensor whose bytes are not those that were saved."""
    return CorruptBlobError(
        f"Tensor {location.name!r} of {label} is damaged: {what} (object {location.key}, offset {location.offset})."
    )
