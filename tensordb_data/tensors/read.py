"""Read tensors by their digests, and check each of them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
import zstandard
from bson import Int64

from tensordb_data.common.chunks import chunks, runs_by_size
from tensordb_data.common.system.files import PLAIN, read_into
from tensordb_data.common.system.machine import cpus
from tensordb_data.common.zstd import largest_expanded
from tensordb_data.errors import CheckpointError, CorruptBlobError, StorageError
from tensordb_data.tensors.compression import decompress
from tensordb_data.tensors.write import TENSORS_AT_ONCE, digest, tensor_id

if TYPE_CHECKING:
    from tensordb_data.blobs.stores.base import Store
    from tensordb_data.warehouse.context import Warehouse
    from tensordb_data.warehouse.documents.blobs import TensorDocument

_PIECE = 1 << 20  # bytes copied, then hashed while the processor's cache still holds them
_ROUND = 256 << 20  # bytes asked of a remote store at once
THREADS = min(4, cpus())


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

    @classmethod
    def from_doc(cls, name: str, content: bytes, doc: Mapping[str, Any]) -> TensorLocation:
        """The location that a tensor document tells.

        Raises:
            CorruptBlobError: It tells none.
        """
        found: list[Any] = [doc.get(field) for field in ("root", "key", "o", "n", "z")]
        root, key, offset, nbytes, original = found
        numbers = (root, offset, nbytes, 0 if original is None else original)
        if not isinstance(key, str) or not all(type(number) in (int, Int64) and number >= 0 for number in numbers):
            raise CorruptBlobError(
                f"expected a tensor document with a root, a key, an offset o and bytes n, found root={root!r}, "
                f"key={key!r}, o={offset!r}, n={nbytes!r}, z={original!r}: edited by another tool?"
            )
        return cls(name, content, root, key, offset, nbytes, original)

    def check_size(self, nbytes: int | None, label: str) -> None:
        """Refuse a tensor of another size than `nbytes`, or of more bytes than its stored ones can become.

        Raises:
            CorruptBlobError: It is so.
        """
        found = self.tensor_nbytes
        if nbytes is not None and found != nbytes:
            raise corrupt(self, label, f"it has {found:,} bytes, and its shape asks for {nbytes:,}")
        if self.original_nbytes is not None and found > (most := largest_expanded(self.nbytes, nbytes is None)):
            raise corrupt(self, label, f"its {self.nbytes:,} bytes may become {most:,} at most, and claim {found:,}")

    def check_within(self, size: int, label: str) -> None:
        """Refuse a location that an object of `size` bytes does not have, before memory is asked for.

        Raises:
            CorruptBlobError: The object ends before the tensor does.
        """
        if self.offset + self.nbytes > size:
            raise corrupt(self, label, f"the object ends {self.offset + self.nbytes - size} bytes too early")


def read_leaves(
    warehouse: Warehouse,
    stored: Mapping[int, tuple[str, bytes]],
    label: str,
    sizes: Mapping[int, int | None] | None = None,
) -> dict[int, np.ndarray[Any, Any]]:
    """Read tensors, and check their bytes.

    Args:
        warehouse: The warehouse.
        stored: Name and digest of each tensor, by its number.
        label: What the tensors belong to, for messages.
        sizes: The bytes that each must have; None if that is not known.

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
        location.check_size(None if sizes is None else sizes.get(number), label)
    memory: dict[int, np.ndarray[Any, Any]] = {}

    with ThreadPoolExecutor(THREADS, thread_name_prefix="tensordb-load") as pool:
        for (root, key), numbers in objects.items():
            store = warehouse.blobs.store(root)
            fill = _fill_local if store.local_path(key) is not None else _fill_remote
            filled = fill(pool, store, key, [locations[n] for n in numbers], label)
            memory.update(zip(numbers, filled, strict=True))
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
        try:
            locations[number] = TensorLocation.from_doc(name, content, row)
        except CorruptBlobError as error:
            raise CorruptBlobError(f"Tensor {name!r} of {label}: {error}") from None
    return locations


def _fill_local(
    pool: ThreadPoolExecutor,
    store: Store,
    key: str,
    locations: list[TensorLocation],
    label: str,
) -> list[np.ndarray[Any, Any]]:
    file = open_local(store, key, label)
    try:
        for location in locations:
            location.check_within(os.fstat(file).st_size, label)
        memory = _memory(locations, label)
        # threads split the work by tensor: reading and hashing both release the GIL
        for _ in pool.map(lambda pair: pread(file, pair[0], pair[1], label), zip(locations, memory, strict=True)):
            pass
        return memory
    finally:
        os.close(file)


def _memory(locations: Sequence[TensorLocation], label: str) -> list[np.ndarray[Any, Any]]:
    try:
        return [np.empty(location.tensor_nbytes, np.uint8) for location in locations]
    except MemoryError:
        total = sum(location.tensor_nbytes for location in locations)
        raise StorageError(f"The tensors of {label} take {total:,} bytes, for which there is no memory.") from None


def open_local(store: Store, key: str, label: str) -> int:
    """Open an object that is a file on this machine; returns the descriptor."""
    path = store.local_path(key)
    assert path is not None
    try:
        return os.open(path, os.O_RDONLY | PLAIN)
    except FileNotFoundError:
        raise StorageError(f"The object {key} that holds tensors of {label} is gone from {store.url}.") from None


def pread(file: int, location: TensorLocation, memory: np.ndarray[Any, Any], label: str) -> None:
    """Read a tensor into memory of its size, and check it."""
    compressed = location.original_nbytes is not None
    target, hasher, done = np.empty(location.nbytes, np.uint8).data if compressed else memory.data, xxhash.xxh3_128(), 0
    while done < location.nbytes:
        got = read_into(file, target[done : done + _PIECE], location.offset + done)
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
    label: str,
) -> list[np.ndarray[Any, Any]]:
    if max(location.offset + location.nbytes for location in locations) > _PIECE:
        size = store.size(key)
        for location in locations:
            location.check_within(size, label)
    memory = _memory(locations, label)
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
    return memory


def corrupt(location: TensorLocation, label: str, what: str) -> CorruptBlobError:
    """The error to raise for a tensor whose bytes are not those that were saved."""
    return CorruptBlobError(
        f"Tensor {location.name!r} of {label} is damaged: {what} (object {location.key}, offset {location.offset})."
    )
