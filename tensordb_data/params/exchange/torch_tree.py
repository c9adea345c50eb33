"""A stored state as `torch.save` takes it, so that `torch.load` reads it with `weights_only=True`."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tensordb_data.params.table import LeafRow
from tensordb_data.tensors.leaf import Kind, build, import_torch
from tensordb_data.tensors.tree import Path, StateDict, show, unflatten

ReadRows = Callable[[Mapping[int, LeafRow]], Mapping[int, "np.ndarray[Any, Any]"]]


@dataclass
class TorchState:
    """A state for `torch.save`.

    Attributes:
        value: The state: dicts, lists, tuples, torch tensors and plain values.
        tensors: The number of its tensors. Tied ones count once.
        tied: Places of tensors that are the same as another one, and the place of that.
        left_out: Places of what torch has no type for, with what it is.
    """

    value: Any = None
    tensors: int = 0
    tied: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def as_torch(tree: Any, rows: Mapping[int, LeafRow], read: ReadRows) -> TorchState:
    """Read the leaves of a structure, see `tree.Flat`, and put the state together.

    Args:
        tree: The structure.
        rows: Its leaves.
        read: Reads the bytes of some of them.
    """
    found = TorchState()
    values: dict[int, Any] = {number: _Gone(row.dtype) for number, row in rows.items()}
    for number, data in read({number: row for number, row in rows.items() if _fits(row)}).items():
        values[number] = _value(rows[number], data)
        found.tensors += rows[number].kind != "bytes"
    found.value = _plain(unflatten(tree, values), (), found, {})
    return found


class _Gone:
    """Stands for an array that torch has no type for."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype


def _fits(row: LeafRow) -> bool:
    """Whether torch has the dtype of a leaf, which NumPy may know by its name in torch: bfloat16 and float8."""
    torch = import_torch()
    if row.kind == "bytes" or isinstance(getattr(torch, row.dtype, None), torch.dtype):
        return True
    try:
        torch.from_numpy(np.empty(0, np.dtype(row.dtype).newbyteorder("=")))
    except TypeError:
        return False
    return True


def _value(row: LeafRow, data: np.ndarray[Any, Any]) -> Any:
    if row.kind != "bytes" and row.dtype[0] not in "<>|=":
        return build("torch", row.dtype, row.shape, data, "torch", row.name)
    if row.dtype[0] == ">":
        little = np.dtype(row.dtype).newbyteorder("<")
        data = data.view(row.dtype).astype(little).view(np.uint8)
        return build("numpy", little.str, row.shape, data, "torch", row.name)
    kind: Kind = "bytes" if row.kind == "bytes" else "numpy"
    return build(kind, row.dtype, row.shape, data, "torch", row.name)


def _plain(value: Any, path: Path, found: TorchState, places: dict[int, str]) -> Any:
    """A state of plain dicts, lists and tuples, without what is gone; notes which tensors are there twice."""
    if isinstance(value, dict):
        kind = Counter if isinstance(value, Counter) else OrderedDict if isinstance(value, OrderedDict) else dict
        items = [(key, _plain(item, (*path, key), found, places)) for key, item in value.items()]
        plain: Any = kind()
        plain.update({key: item for key, item in items if not isinstance(item, _Gone)})
        if isinstance(value, StateDict):
            plain._metadata = OrderedDict(value._metadata)
        return plain
    if type(value) in (list, tuple):
        kept = [_plain(item, (*path, i), found, places) for i, item in enumerate(value)]
        return type(value)(None if isinstance(item, _Gone) else item for item in kept)
    place = show(path).removeprefix("state") or "the whole"
    if isinstance(value, _Gone):
        found.left_out[place] = f"an array of {value.dtype}"
    elif isinstance(value, import_torch().Tensor):
        other = places.setdefault(id(value), place)
        if other != place:
            found.tied[place] = other
    return value
