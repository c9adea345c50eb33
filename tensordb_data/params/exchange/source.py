"""What an import found in files of others: a state to be saved, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bson import ObjectId

from tensordb_data.common.html import Report
from tensordb_data.tensors.snapshot import Snapshot

_SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Source:
    """A state that was read from files.

    Attributes:
        snapshot: The state: its root is a dict, the parts of the set.
        format: What the files are: `"safetensors"`, `"torch"`, `"lightning"` or `"huggingface"`.
        left_out: What is not in the state, and why.
        step: The step that the files name.
        about: What else is noted with the set.
    """

    snapshot: Snapshot
    format: str
    left_out: Mapping[str, str]
    step: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Imported(Report):
    """What an import did."""

    id: ObjectId
    """The `_id` of the checkpoint."""
    format: str
    """What the files were: `"safetensors"`, `"torch"`, `"lightning"` or `"huggingface"`."""
    parts: tuple[str, ...]
    """The parts of the checkpoint: `"model"`, and what else there was: `"config"`, `"optimizer"`."""
    tensors: int
    """The number of its tensors. Tied ones count once."""
    nbytes: int
    """Bytes of its tensors."""
    stored: int
    """Bytes that were written; the others were stored already."""
    left_out: Mapping[str, str]
    """What is not in the checkpoint, by its place in the files, and why."""

    def __str__(self) -> str:
        told = f"{self.id}: {self.tensors:,} tensors, {self.nbytes:,} bytes, from {self.format}"
        return told if not self.left_out else f"{told}; left out: {shown(self.left_out)}"


def shown(names: Mapping[str, str]) -> str:
    """The first names, each with its reason."""
    some = ", ".join(f"{name} ({why})" for name, why in list(names.items())[:_SHOWN])
    return f"{some}, … {len(names)} in all" if len(names) > _SHOWN else some
