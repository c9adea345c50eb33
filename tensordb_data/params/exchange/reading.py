"""Find out what a file or folder of parameters is, and read it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensordb_data.common.system.files import PLAIN, read_at
from tensordb_data.errors import CheckpointError, NotFoundError, StorageError
from tensordb_data.params.exchange.safetensors_file import read_safetensors
from tensordb_data.params.exchange.source import Source
from tensordb_data.params.exchange.torch_file import read_torch
from tensordb_data.tensors.snapshot import Snapshot, view

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_CONFIG = "config.json"
_LONGEST_JSON = 64 << 20
_LIGHTNING = "pytorch-lightning_version"


def read_source(path: str | Path, key: str | None = None) -> Source:
    """Read a safetensors file, a file of `torch.save`, a checkpoint of Lightning, or a folder of Hugging Face.

    What a file is, its first bytes tell and not its name.

    Args:
        path: The file or folder.
        key: Of a file that holds more than parameters, the entry that has them: `"model_state_dict"`.

    Raises:
        NotFoundError: There is no such file.
        CheckpointError: It is none of these, or damaged.
        MissingExtraError: It needs torch.
        StorageError: It cannot be read.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _folder(path, key)
        if not path.exists():
            raise NotFoundError(f"there is no file or folder {path}")
        if not path.is_file():
            raise CheckpointError(f"{path}: expected a file or a folder, found neither")
        return _file(path, key)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error


def _file(path: Path, key: str | None) -> Source:
    if _is_torch(path):
        return _torch(path, key)
    if key is not None:
        raise CheckpointError(f"key={key!r} names an entry of a file of torch.save; {path} is none")
    snapshot, left_out = read_safetensors({path: None})
    return Source(snapshot, "safetensors", left_out)


def _is_torch(path: Path) -> bool:
    """Whether a file begins as those of torch.save do: as a zip, or, until torch 1.6, as a pickle or tar."""
    fd = os.open(path, os.O_RDONLY | PLAIN)
    try:
        front = read_at(fd, 9, 0)
    finally:
        os.close(fd)
    return front[:4] == b"PK\x03\x04" or (front[:1] == b"\x80" and front[8:] != b"{")


def _torch(path: Path, key: str | None) -> Source:
    found, left_out = read_torch(path)
    if key is not None:
        if not isinstance(found, Mapping) or key not in found:
            there = ", ".join(map(repr, found)) if isinstance(found, Mapping) else f"a {type(found).__name__}"
            raise CheckpointError(f"{path} has no entry {key!r}; it has {there:.300}")
        inside = f"[{key!r}]"
        left_out = {name: why for name, why in left_out.items() if name.startswith(inside)}
        left_out |= {f"[{name!r}]": f"not in key={key!r}" for name in found if name != key}
        return Source(_holding(path, {"model": found[key]}), "torch", left_out)
    if isinstance(found, Mapping) and _LIGHTNING in found and isinstance(found.get("state_dict"), Mapping):
        return _lightning(path, found, left_out)
    return Source(_holding(path, {"model": found}), "torch", left_out)


def _lightning(path: Path, found: Mapping[str, Any], left_out: dict[str, str]) -> Source:
    parts = {"model": found["state_dict"]}
    taken = {"state_dict", "global_step", "epoch", _LIGHTNING}
    for name, part in (("optimizer_states", "optimizer"), ("lr_schedulers", "scheduler")):
        if isinstance(states := found.get(name), (list, tuple)) and not any(
            place.startswith(f"[{name!r}]") for place in left_out
        ):
            parts |= {part if not i else f"{part}_{i}": state for i, state in enumerate(states)}
            taken.add(name)
    if isinstance(found.get("hyper_parameters"), Mapping):
        parts["hyper_parameters"] = found["hyper_parameters"]
        taken.add("hyper_parameters")
    left_out |= {f"[{name!r}]": "a state of the trainer" for name in found if name not in taken}
    step, epoch = found.get("global_step"), found.get("epoch")
    about = {"epoch": epoch} if type(epoch) is int and 0 <= epoch < 2**63 else {}
    return Source(_holding(path, parts), "lightning", left_out, step if type(step) is int else None, about)


def _holding(path: Path, parts: Mapping[str, Any]) -> Snapshot:
    try:
        snapshot = view(parts)
    except (RuntimeError, MemoryError) as error:  # of torch, too
        raise StorageError(f"{path}: there is no memory for its tensors: {error}") from None
    if not any(leaf.kind != "bytes" for leaf in snapshot.leaves):
        raise CheckpointError(f"{path}: expected tensors, found none")
    return snapshot


def _folder(folder: Path, key: str | None) -> Source:
    if key is not None:
        raise CheckpointError(f"key={key!r} names an entry of a file of torch.save; {folder} is a folder")
    name = next((name for name in _WEIGHTS if (folder / name).is_file()), None)
    if name is None:
        single = [path.name for path in sorted(folder.glob("*.safetensors"))]
        if len(single) != 1:
            there = f"found {len(single)} other .safetensors"
            raise CheckpointError(f"{folder}: expected one of {', '.join(_WEIGHTS)}, {there}")
        name = single[0]
    config = _json(folder / _CONFIG) if (folder / _CONFIG).is_file() else None
    parts = {} if config is None else {"config": config}
    used = {name, *([_CONFIG] if parts else [])}
    files: dict[Path, list[str] | None] = {folder / name: None}
    if name.endswith(".index.json"):
        files = dict(_shards(folder, name))
        used |= {path.name for path in files}
    if ".bin" in name:
        snapshot, left_out = _torch_shards(folder, files, parts)
    else:
        snapshot, left_out = read_safetensors(files, parts)
    left_out |= {path.name: "not read" for path in sorted(folder.iterdir()) if path.name not in used}
    return Source(snapshot, "huggingface", left_out)


def _shards(folder: Path, name: str) -> dict[Path, list[str]]:
    """The files that an index names, with the tensors of each."""
    index = _json(folder / name)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise CheckpointError(f"{folder / name}: expected a weight_map from tensors to files")
    found: dict[Path, list[str]] = {}
    for tensor, file in places.items():
        if file in ("", ".", "..") or "/" in file or "\\" in file or "\0" in file:
            raise CheckpointError(f"{folder / name} names {file!r:.200}, which is no file beside it")
        found.setdefault(folder / file, []).append(tensor)
    for path in found:
        if not path.is_file():
            raise CheckpointError(f"{folder / name} names {path.name}, which is not there")
    return found


def _torch_shards(
    folder: Path, files: Mapping[Path, list[str] | None], parts: Mapping[str, Any]
) -> tuple[Snapshot, dict[str, str]]:
    state: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for path, wanted in files.items():
        found, gone = read_torch(path)
        if not isinstance(found, Mapping):
            raise CheckpointError(f"{path}: expected tensors by name, found a {type(found).__name__}")
        if absent := set(wanted or ()) - found.keys():
            raise CheckpointError(f"{path}: the index promises {min(absent)!r}, which is not in this file")
        left_out |= {f"{path.name}: {name}": why for name, why in gone.items()}
        if wanted is None:
            state = dict(found) if not hasattr(found, "_metadata") else found  # type: ignore[assignment]
        else:
            state.update((name, found[name]) for name in wanted)
            left_out |= {f"{path.name}: {name}": "not in the index" for name in found.keys() - set(wanted)}
    return _holding(folder, {"model": state, **parts}), left_out


def _json(path: Path) -> Any:
    if (size := path.stat().st_size) > _LONGEST_JSON:
        raise CheckpointError(f"{path} has {size:,} bytes; expected {_LONGEST_JSON:,} at most")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
