"""Read safetensors files. Their tensors are read once, into memory of their own; no library is needed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tensordb_data.common.system.files import PLAIN, read_into
from tensordb_data.errors import CheckpointError, StorageError
from tensordb_data.tensors.leaf import Leaf
from tensordb_data.tensors.safetensors import Place, read_header
from tensordb_data.tensors.snapshot import Snapshot
from tensordb_data.tensors.tree import flatten

_PIECE = 64 << 20  # bytes that are asked of a file at once


def read_safetensors(
    files: Mapping[Path, Sequence[str] | None], parts: Mapping[str, Any] | None = None
) -> tuple[Snapshot, dict[str, str]]:
    """Read the tensors of one file, or of several as one state.

    Args:
        files: The files, each with the names of the tensors that are wanted; None for all.
        parts: More parts of the state, without tensors.

    Returns:
        The state, whose part `"model"` has the tensors by their names; and the tensors that were not wanted.

    Raises:
        CheckpointError: A file is no safetensors file, or damaged, or lacks a tensor.
        StorageError: A file cannot be read, or there is no memory for it.
    """
    leaves: list[Leaf] = []
    data: list[memoryview] = []
    numbers: dict[str, int] = {}
    left_out: dict[str, str] = {}
    for path, wanted in files.items():
        with _opened(path) as fd:
            places, metadata = read_header(fd)
            there = {place.name for place in places}
            names = there if wanted is None else set(wanted)
            if absent := names - there:
                raise CheckpointError(f"{path}: the index promises {min(absent)!r}, which is not in this file")
            chosen = [place for place in places if place.name in names]
            left_out.update((f"{path.name}: {name}", "not in the index") for name in sorted(there - names))
            for place in chosen:
                numbers[place.name] = len(leaves)
                leaves.append(Leaf(f"model/{place.name}", "torch", place.dtype, place.shape, place.nbytes, None))
            data += _read(fd, chosen)
            # safetensors.torch.save_model notes a tied tensor as {its name: the name of the other one}
            numbers.update(
                (name, numbers[other])
                for name, other in metadata.items()
                if name != "format" and name not in numbers and other in numbers
            )
    if not leaves:
        raise CheckpointError(f"{', '.join(map(str, files))}: expected tensors, found none")
    model = {"dict": [[name, {"leaf": number}] for name, number in numbers.items()]}
    more = [[name, flatten(value).structure] for name, value in (parts or {}).items()]
    return Snapshot({"dict": [["model", model], *more]}, tuple(leaves), tuple(data)), left_out


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | PLAIN)
        try:
            yield fd
        finally:
            os.close(fd)
    except ValueError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None
    except MemoryError:
        raise StorageError(f"{path}: there is no memory for its {path.stat().st_size:,} bytes") from None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error


def _read(fd: int, places: Sequence[Place]) -> list[memoryview]:
    """The bytes of some tensors."""
    memory = [np.empty(place.nbytes, np.uint8) for place in places]
    for place, target in zip(places, memory, strict=True):
        done = 0
        while done < place.nbytes:
            got = read_into(fd, target[done : done + _PIECE].data, place.offset + done)
            if got == 0:
                raise ValueError(f"it was cut short while tensor {place.name!r} was read")
            done += got
    return [target.data for target in memory]
