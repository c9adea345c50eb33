"""Load: from the document of a parameter set back to the state, every tensor checked against its digest."""

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

from tensordb_data.errors import CheckpointError, CorruptBlobError, StorageError
from tensordb_data.tensors.compression import expand
from tensordb_data.tensors.write import chunks, digest, tensor_id

if TYPE_CHECKING:
    from tensordb_data.blobs.stores.base import Store
    from tensordb_data.warehouse.context import Warehouse

_PIECE = 1 << 20  # bytes copied, then hashed while the processor's cache still holds them
_ROUND = 256 << 20  # bytes asked of a remote store at once
THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Place:
    """Where the bytes of a tensor are stored."""

    name: str
    content: bytes
    root: int
    key: str
    offset: int
    nbytes: int
    """Stored bytes."""
    expanded: int | None
    """Bytes of the tensor, where those are zstd."""


def read_leaves(
    warehouse: Warehouse, stored: Mapping[int, tuple[str, bytes]], label: str
) -> dict[int, np.ndarray[Any, Any]]:
    """The bytes of tensors by their digests, each checked: uint8 [n] for each place of `stored`, (name, digest)."""
    places = find_places(warehouse, stored, label)
    objects: dict[tuple[int, str], list[int]] = defaultdict(list)
    for number, place in places.items():
        objects[place.root, place.key].append(number)
    sizes = {n: place.nbytes if place.expanded is None else place.expanded for n, place in places.items()}
    memory = {number: np.empty(nbytes, np.uint8) for number, nbytes in sizes.items()}

    with ThreadPoolExecutor(THREADS, thread_name_prefix="tensordb-load") as pool:
        for (root, key), numbers in objects.items():
            store = warehouse.blobs.store(root)
            fill = _fill_local if store.local_path(key) is not None else _fill_remote
            fill(pool, store, key, [places[n] for n in numbers], [memory[n] for n in numbers], label)
    return memory


def find_places(warehouse: Warehouse, stored: Mapping[int, tuple[str, bytes]], label: str) -> dict[int, Place]:
    """Where tensors are, by their names and digests.

    Raises:
        CheckpointError: One is not there any more.
    """
    rows: dict[bytes, Mapping[str, Any]] = {}
    contents = list({content for _, content in stored.values()})
    for chunk in chunks(contents):
        ids = [tensor_id(warehouse.project, content) for content in chunk]
        rows.update((bytes(row["_id"]["h"]), row) for row in warehouse.index["tensors"].find({"_id": {"$in": ids}}))
    places = {}
    for number, (name, content) in stored.items():
        if (row := rows.get(content)) is None:
            raise CheckpointError(
                f"Tensor {name!r} of {label} is not in the warehouse any more: the set is incomplete."
            )
        places[number] = Place(name, content, row["root"], row["key"], row["o"], row["n"], row.get("z"))
    return places


def _fill_local(
    pool: ThreadPoolExecutor,
    store: Store,
    key: str,
    places: list[Place],
    memory: list[np.ndarray[Any, Any]],
    label: str,
) -> None:
    file = open_local(store, key, label)
    try:
        # threads split the work by tensor: reading and hashing both release the GIL
        for _ in pool.map(lambda pair: pread(file, pair[0], pair[1], label), zip(places, memory, strict=True)):
            pass
    finally:
        os.close(file)


def open_local(store: Store, key: str, label: str) -> int:
    """A descriptor of an object that is a file of this machine."""
    path = store.local_path(key)
    assert path is not None
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise StorageError(f"The object {key} that holds tensors of {label} is gone from {store.url}.") from None


def pread(file: int, place: Place, memory: np.ndarray[Any, Any], label: str) -> None:
    """The bytes of a tensor into memory of its size, checked."""
    squeezed = place.expanded is not None
    target, hasher, done = np.empty(place.nbytes, np.uint8).data if squeezed else memory.data, xxhash.xxh3_128(), 0
    while done < place.nbytes:
        got = os.preadv(file, [target[done : done + _PIECE]], place.offset + done)
        if got == 0:
            raise corrupt(place, label, f"the object ends {place.nbytes - done} bytes too early")
        if not squeezed:
            hasher.update(target[done : done + got])
        done += got
    if squeezed:
        _expand(place, target, memory, label)
    elif hasher.digest() != place.content:
        raise corrupt(place, label, "its bytes do not match their checksum")


def _expand(place: Place, stored: memoryview, memory: np.ndarray[Any, Any], label: str) -> None:
    try:
        content = expand(stored, memory.data, len(memory))
    except zstandard.ZstdError as error:
        raise corrupt(place, label, f"its bytes are not what was compressed: {error}") from None
    if content != place.content:
        raise corrupt(place, label, "its bytes do not match their checksum")


def _fill_remote(
    pool: ThreadPoolExecutor,
    store: Store,
    key: str,
    places: list[Place],
    memory: list[np.ndarray[Any, Any]],
    label: str,
) -> None:
    for group in _rounds(places):
        got = store.get_ranges(key, [places[i].offset for i in group], [places[i].nbytes for i in group])
        for i, data in zip(group, got, strict=True):
            if len(data) != places[i].nbytes:
                raise corrupt(places[i], label, f"{len(data)} of {places[i].nbytes} bytes are there")
            if places[i].expanded is not None:
                _expand(places[i], data, memory[i], label)
                continue
            memory[i][:] = np.frombuffer(data, np.uint8)
            if digest(memory[i].data) != places[i].content:
                raise corrupt(places[i], label, "its bytes do not match their checksum")


def _rounds(places: list[Place]) -> list[list[int]]:
    rounds: list[list[int]] = []
    size = _ROUND
    for i, place in enumerate(places):
        if size + place.nbytes > _ROUND:
            rounds.append([])
            size = 0
        rounds[-1].append(i)
        size += place.nbytes
    return rounds


def corrupt(place: Place, label: str, what: str) -> CorruptBlobError:
    """The error that a tensor's bytes are not those that were saved."""
    return CorruptBlobError(
        f"Tensor {place.name!r} of {label} is damaged: {what} (object {place.key}, offset {place.offset})."
    )
