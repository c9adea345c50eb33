"""Write and read a parameter set as two files for a server: `model.safetensors`, and `model.json` that describes it.

The tensors lie in one safetensors file, which any reader of that format opens. The JSON has their structure (the
nesting, and what was a tuple or a number), a checksum of each, and the set's `_id`, run, step and metrics.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from bson import ObjectId, json_util

from tensordb_data.common.system.files import sync_folder
from tensordb_data.errors import CorruptBlobError, NotFoundError
from tensordb_data.tensors import safetensors
from tensordb_data.tensors.leaf import Framework, build
from tensordb_data.tensors.snapshot import view
from tensordb_data.tensors.tree import unflatten

TENSORS, ABOUT = "model.safetensors", "model.json"
FORMAT = 1
_FILES = {(TENSORS, True), (ABOUT, True)}
_LONGEST_HEADER = 1 << 30


@dataclass(frozen=True)
class Bundle:
    """Parameters that are deployed.

    Attributes:
        state: The parameters, in the structure in which they were saved.
        about: The fields of the checkpoint: `_id`, `run`, `step`, and its metrics.
        folder: The folder that they were read from.
    """

    state: Any
    about: Mapping[str, Any]
    folder: Path


def write(folder: Path, state: Any, about: Mapping[str, Any]) -> None:
    """Writes a state into a folder that exists; durable on return.

    Raises:
        CheckpointError: The state holds something that cannot be saved.
        OSError: The disk is full, or the like.
    """
    snapshot = view(state)
    front, _ = safetensors.header(snapshot.leaves, {"format": "tensordb"})
    put(folder / TENSORS, [front, *snapshot.data])
    rows = [
        [leaf.name, leaf.kind, leaf.dtype, list(leaf.shape), xxhash.xxh3_128_hexdigest(data)]
        for leaf, data in zip(snapshot.leaves, snapshot.data, strict=True)
    ]
    document = {"format": FORMAT, "set": about, "tree": snapshot.structure, "tensors": rows}
    text = json_util.dumps(document, json_options=json_util.RELAXED_JSON_OPTIONS, indent=1)
    put(folder / ABOUT, [text.encode()])
    sync_folder(folder)


def read(folder: Path, framework: Framework = "auto") -> Bundle:
    """Reads it back; every tensor is checked.

    Raises:
        CorruptBlobError: Its bytes are not those that were written; names the tensor.
        FileNotFoundError: There is none.
    """
    document = json.loads((folder / ABOUT).read_text())
    whole = np.fromfile(folder / TENSORS, np.uint8)
    begin = 8 + int.from_bytes(whole[:8].tobytes(), "little")
    places = _header(whole[8:begin].tobytes(), folder)
    leaves = []
    for name, kind, dtype, shape, digest in document["tensors"]:
        low, high = places.get(name, (0, 0))
        memory = whole[begin + low : begin + high].copy()
        if xxhash.xxh3_128_hexdigest(memory.data) != digest:
            raise CorruptBlobError(f"tensor {name!r} in {folder / TENSORS} does not match its checksum")
        leaves.append(build(kind, dtype, tuple(shape), memory, framework, name))
    return Bundle(unflatten(document["tree"], leaves), _about(folder, document), folder)


def about(folder: Path) -> Mapping[str, Any]:
    """What a folder holds, without its tensors."""
    return _about(folder, json.loads((folder / ABOUT).read_text()))


def is_bundle(folder: Path) -> bool:
    """Whether a folder holds what `write` writes and nothing else, by its names and by what its files say.

    It may be damaged.
    """
    try:
        if {(entry.name, entry.is_file(follow_symlinks=False)) for entry in os.scandir(folder)} != _FILES:
            return False
        document = json.loads((folder / ABOUT).read_text())
        with (folder / TENSORS).open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little") % _LONGEST_HEADER))
        named = {name for name, *_ in document["tensors"]}
        return (
            document.keys() == {"format", "set", "tree", "tensors"}
            and ObjectId.is_valid(document["set"]["_id"]["$oid"])
            and header.pop("__metadata__") == {"format": "tensordb"}
            and header.keys() == named
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def load_deployed(folder: str | Path, *, framework: Framework = "auto") -> Bundle:
    """Loads the version that is deployed in `folder` now. This needs no warehouse.

    A server calls it when `current` leads to another version than the one that it serves.

    Args:
        folder: The folder that the deployer was given.
        framework: What tensors become: `"numpy"`, `"torch"`, or `"auto"`. With `"auto"`, tensors that were saved from
            torch become torch tensors if torch is imported.

    Raises:
        NotFoundError: Nothing has been deployed there yet.
        CorruptBlobError: The bytes are not those that were written.
    """
    current, before = Path(folder) / "current", None
    while True:
        version = current.resolve()
        try:
            return read(version, framework)
        except FileNotFoundError:
            if version == before:  # not a version that was retired while it was read
                raise NotFoundError(f"nothing is deployed in {folder}: {current} leads to no version") from None
            before = version


def put(path: Path, parts: list[Any]) -> None:
    """Writes a file; durable on return, but for its name."""
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def _header(text: bytes, folder: Path) -> dict[str, tuple[int, int]]:
    with contextlib.suppress(ValueError):
        found = json.loads(text)
        return {name: tuple(entry["data_offsets"]) for name, entry in found.items() if name != "__metadata__"}
    raise CorruptBlobError(f"{folder / TENSORS} has no header")


def _about(folder: Path, document: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json_util.loads(json.dumps(document["set"]))
    return found
