"""Lineage: from what a set was made: data, position, model, code, libraries, and the set before it."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = {
    "tensordb_data": "tensordb-data", "numpy": "numpy", "torch": "torch", "tensorflow": "tensorflow", "keras": "keras",
    "jax": "jax", "lightning": "lightning", "pytorch_lightning": "pytorch-lightning", "transformers": "transformers",
}  # fmt: skip
_PATIENCE = 5.0  # seconds for git, which may have to look at many files


def surroundings() -> dict[str, Any]:
    """Code and libraries of this process, as they were when this was first asked.

    Returns:
        `code`: `script` (the main program), `commit` of the git repository that it lies in, and whether tracked files
        differ from that commit (`dirty`); None for what cannot be known. `versions`: of Python and of each library of
        machine learning that was imported.
    """
    return {"code": _code(), "versions": _versions()}


def of_data(stream: Any) -> list[dict[str, Any]]:
    """The queries of a stream, of a mix of streams, or of a loader over one of these. Empty if it has none."""
    for name in ("dataset", "_stream"):  # of a DataLoader, of a QueryDataset
        stream = getattr(stream, name, stream)
    found = []
    for one in getattr(stream, "streams", [stream]):
        spec: Any = getattr(one, "spec", None)
        if (query := getattr(spec, "query", None)) is not None:
            # as text: a document cannot be searched by fields whose names begin with "$"
            row = {"query": query.to_json(), "fingerprint": query.fingerprint, "shuffle": spec.shuffle}
            row = {**row, "seed": spec.seed, "batch_size": spec.batch_size, "end": spec.end}
            row = row if spec.world_size == 1 else {**row, "world_size": spec.world_size}
            found.append(row if spec.tokens is None else {**row, "tokens": spec.tokens.to_doc()})
    return found


def of_position(state: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """How much of its data a run has used, from the state of its stream."""
    if state is None:
        return None
    inner = state.get("stream", state)
    if not isinstance(inner, Mapping):
        return None
    return {name: inner[name] for name in ("pass", "position", "total") if name in inner} or None


def name_of(model: Any) -> str:
    """The class of a model: its own, of one that `fully_shard` has given a class for both."""
    kind = type(model)
    for number, one in enumerate(kind.__mro__[:-1]):
        if one.__name__ == "FSDPModule" and one.__module__.startswith("torch."):
            kind = kind.__mro__[number + 1]
            break
    return f"{kind.__module__}.{kind.__qualname__}"


@functools.cache
def _code() -> dict[str, Any]:
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    path = Path(script).resolve() if script else None
    folder = path.parent if path else Path.cwd()
    commit = _git(folder, "rev-parse", "HEAD")
    changed = None if commit is None else _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {
        "script": None if path is None else path.name,
        "commit": commit,
        "dirty": None if changed is None else bool(changed),
    }


@functools.cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, str]:
    found = {name: _version(package) for name, package in _PACKAGES.items() if name in sys.modules}
    return {"python": platform.python_version(), **{name: text for name, text in found.items() if text is not None}}


def _git(folder: Path, *arguments: str) -> str | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # `status` must not write into the user's repository
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True, text=True, timeout=_PATIENCE, env=environment, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
