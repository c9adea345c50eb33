"""Load a set in place: check it in its local files, then read it into the memory of the model.

The set is read twice. A second copy in fresh memory would cost more, since the system has to clear its pages first.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from tensordb_data.common.system.files import read_into
from tensordb_data.params.load import describe, reading_structure, structure
from tensordb_data.params.names import match_names
from tensordb_data.params.table import LeafRow
from tensordb_data.tensors.read import THREADS, TensorLocation, corrupt, find_locations, open_local, pread
from tensordb_data.tensors.tree import unflatten

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_PIECE = 256 << 10  # bytes, hashed while the processor's cache still holds them

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def load_in_place(warehouse: Warehouse, document: Mapping[str, Any], model: Any) -> tuple[str, ...] | None:
    """Load the part "model" of a set into a torch module, all of it or nothing.

    Returns:
        The names in the module, if it was loaded. This needs the set in local files, the module on the CPU, and the
        same names, shapes, dtypes and versions of modules in both. Otherwise None: the module has not changed.

    Raises:
        CorruptBlobError: Stored bytes do not match their digest; names the tensor. The module is as it was.
        StorageError: The blob store failed.
    """
    torch, keras = sys.modules.get("torch"), sys.modules.get("keras")
    # a Keras model is a torch module too where Keras runs on torch
    if torch is None or not isinstance(model, torch.nn.Module) or (keras and isinstance(model, keras.Model)):
        return None
    trees, table = structure(warehouse, document)
    with reading_structure(describe(document)):
        saved = unflatten(trees.get("model"), table)
    own = model.state_dict(keep_vars=True)
    if not isinstance(saved, dict) or len(saved) != len(own):
        return None
    versions, pairs = getattr(saved, "_metadata", None), match_names(own, saved)
    if len(pairs) != len(own) or versions not in (None, dict(getattr(own, "_metadata", {}))):
        return None
    saved = {name: saved[pairs[name]] for name in own}
    if not all(isinstance(row, LeafRow) and _fits(torch, row, own[name]) for name, row in saved.items()):
        return None
    targets = {name: own[name].detach().reshape(-1).view(torch.uint8).numpy() for name in own}
    if _overlap(saved, targets) or not _read(warehouse, describe(document), saved, targets):
        return None
    # runs the hooks of the module, which may use the values; values that are in their place are not copied
    model.load_state_dict(own)
    return tuple(own)


def _fits(torch: Any, row: LeafRow, value: Any) -> bool:
    return (
        row.kind == "torch"
        and not row.pieces
        and torch.is_tensor(value)
        and type(value) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
        and value.device.type == "cpu"
        and value.layout is torch.strided
        and value.is_contiguous()
        and not (value.is_quantized or value.is_conj() or value.is_neg())
        and str(value.dtype) == f"torch.{row.dtype}"
        and tuple(value.shape) == row.shape
    )


def _overlap(saved: Mapping[str, LeafRow], targets: Mapping[str, Bytes]) -> bool:
    """Whether two tensors share memory and not all of it, or were saved with different values."""
    lying = sorted(
        (memory.ctypes.data, memory.ctypes.data + memory.nbytes, saved[name].content or saved[name].inline)
        for name, memory in targets.items()
        if memory.nbytes
    )
    return any(second != first and second[0] < first[1] for first, second in pairwise(lying))


def _read(warehouse: Warehouse, label: str, saved: Mapping[str, LeafRow], targets: Mapping[str, Bytes]) -> bool:
    names = list(saved)
    stored = {i: (saved[n].name, content) for i, n in enumerate(names) if (content := saved[n].content)}
    locations = find_locations(warehouse, stored, label)
    for i, location in locations.items():
        location.check_size(targets[names[i]].nbytes, label)
    objects = {(location.root, location.key): warehouse.blobs.store(location.root) for location in locations.values()}
    if any(store.local_path(key) is None for (_, key), store in objects.items()):
        return False
    with ExitStack() as opened:
        files = {}
        for (root, key), store in objects.items():
            files[root, key] = open_local(store, key, label)
            opened.callback(os.close, files[root, key])
        for location in locations.values():
            location.check_within(os.fstat(files[location.root, location.key]).st_size, label)
        pool = opened.enter_context(ThreadPoolExecutor(THREADS, thread_name_prefix="tensordb-load"))

        def check(i: int) -> Bytes | None:
            location = locations[i]
            return _checked(files[location.root, location.key], location, targets[names[i]].nbytes, label)

        def fill(i: int, held: Bytes | None) -> None:
            location = locations[i]
            if held is None:
                _pread(files[location.root, location.key], location, targets[names[i]], label)
            else:
                targets[names[i]][:] = held

        decompressed = list(pool.map(check, locations))
        list(pool.map(fill, locations, decompressed))
    for name, row in saved.items():
        if row.content is None:
            targets[name][:] = np.frombuffer(row.inline, np.uint8)
    return True


def _checked(file: int, location: TensorLocation, nbytes: int, label: str) -> Bytes | None:
    """Check a tensor in its file. If it had to be decompressed for that, return its bytes."""
    if location.original_nbytes is not None:
        memory = np.empty(nbytes, np.uint8)
        pread(file, location, memory, label)
        return memory
    hasher, buffer = xxhash.xxh3_128(), np.empty(min(_PIECE, location.nbytes), np.uint8)
    for at, size in _pieces(location.nbytes):
        _fill(file, location, buffer[:size], at, label)
        hasher.update(buffer[:size].data)
    if hasher.digest() != location.content:
        raise corrupt(location, label, "its bytes do not match their checksum")
    return None


def _pread(file: int, location: TensorLocation, memory: Bytes, label: str) -> None:
    for at, size in _pieces(location.nbytes):
        _fill(file, location, memory[at : at + size], at, label)


def _pieces(nbytes: int) -> Iterator[tuple[int, int]]:
    return ((at, min(_PIECE, nbytes - at)) for at in range(0, nbytes, _PIECE))


def _fill(file: int, location: TensorLocation, memory: Bytes, at: int, label: str) -> None:
    done = 0
    while done < len(memory):
        got = read_into(file, memory[done:].data, location.offset + at + done)
        if got == 0:
            raise corrupt(location, label, f"the object ends {location.nbytes - at - done} bytes too early")
        done += got
