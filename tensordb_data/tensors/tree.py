"""Take a training state apart into its structure (JSON) and its tensors (leaves), and put it together again.

What a state may hold: nested dict (str or int keys), list, tuple, None, bool, int, float, str, bytes, numpy scalars and
arrays, torch tensors, and whatever turns into a numpy array through ``__array__`` (Keras variables, JAX arrays). The
types come back as they were, tuples and int keys too, because optimizers rely on them. No pickle is involved.
"""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tensordb_data.errors import CheckpointError
from tensordb_data.tensors.leaf import Leaf, as_leaf

Path = tuple[str | int, ...]

# Keys of the one-entry objects that stand for what JSON does not have.
_LEAF, _TUPLE, _FLOAT, _MODULE = "leaf", "tuple", "float", "module"
_AS_THEY_ARE = {bool, int, str, type(None)}
_DICTS: dict[str, Callable[[list[tuple[Any, Any]]], Any]] = {
    "dict": dict,
    "ordered": OrderedDict,
    "counter": lambda items: Counter(dict(items)),  # MultiStepLR keeps its milestones in one
}


class StateDict(OrderedDict[str, Any]):
    """A state dict of torch, with the versions of its modules where torch looks for them."""

    _metadata: dict[str, Any]


@dataclass(frozen=True)
class Flat:
    """A state taken apart.

    Attributes:
        structure: The state with each tensor replaced by its number: JSON-able.
        leaves: The tensors, in the order of those numbers; one that is tied (shared) is here once.
    """

    structure: Any
    leaves: tuple[Leaf, ...]

    def pieces_only(self) -> Flat:
        """Without the tensors that are not divided over processes, and the structure: what process 0 does not have."""
        return Flat(None, tuple(leaf for leaf in self.leaves if leaf.piece is not None and leaf.piece.box is not None))


def flatten(state: Any) -> Flat:
    """Takes a state apart without copying any tensor.

    Raises:
        CheckpointError: Something in the state cannot be saved; the message says where it is.
    """
    flattener = _Flattener()
    try:
        structure = flattener.node(state, ())
    except RecursionError:
        raise CheckpointError(
            "The state is nested too deeply to be saved, or contains itself. Pass a plain tree of "
            "dicts, lists and tensors."
        ) from None
    return Flat(structure, tuple(flattener.leaves))


def unflatten(structure: Any, leaves: Mapping[int, Any] | Sequence[Any]) -> Any:
    """Puts a state together from its structure and the values of its leaves."""
    if isinstance(structure, list):
        return [unflatten(node, leaves) for node in structure]
    if not isinstance(structure, dict):
        return structure
    ((kind, content),) = structure.items()
    if kind == _LEAF:
        return leaves[content]
    if kind == _TUPLE:
        return tuple(unflatten(node, leaves) for node in content)
    if kind == _FLOAT:
        return float(content)
    if kind in _DICTS:
        return _DICTS[kind]([(key, unflatten(node, leaves)) for key, node in content])
    if kind == _MODULE:
        state = StateDict((key, unflatten(node, leaves)) for key, node in content["items"])
        state._metadata = {name: {"version": version} for name, version in content["versions"]}
        return state
    raise CheckpointError(
        f"The set was written by a newer version of the library: its structure has {kind!r}. Upgrade to load it."
    )


def leaf_numbers(structure: Any) -> set[int]:
    """The numbers of the leaves that a structure, or a part of one, refers to."""
    if isinstance(structure, list):
        return {number for node in structure for number in leaf_numbers(node)}
    if not isinstance(structure, dict):
        return set()
    ((kind, content),) = structure.items()
    if kind == _LEAF:
        return {content}
    if kind == _FLOAT:
        return set()
    nodes = content if kind == _TUPLE else [node for _, node in (content["items"] if kind == _MODULE else content)]
    return {number for node in nodes for number in leaf_numbers(node)}


def parts(structure: Any) -> dict[str, Any]:
    """The top level of a structure whose root is a dict: name to the structure below it."""
    ((_, items),) = structure.items()
    return dict(items)


def to_json(document: Any) -> bytes:
    """Canonical JSON bytes: the same structure always gives the same bytes, so it is stored once."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def from_json(data: bytes | memoryview) -> Any:
    """Read what `to_json` wrote."""
    return json.loads(bytes(data))


def show(path: Path) -> str:
    """The place of a value in a state, as Python would write it: ``state['optimizer'][0]``."""
    return "state" + "".join(f"[{key!r}]" for key in path)


def _versions(state: dict[Any, Any]) -> list[tuple[str, int]] | None:
    """The versions of the modules that made a state dict of torch; None if they are all the first one."""
    about = getattr(state, "_metadata", None)
    if not isinstance(about, Mapping):
        return None
    found = [(str(name), one["version"]) for name, one in about.items() if type(one.get("version")) is int]
    return found if any(version != 1 for _, version in found) else None


class _Flattener:
    def __init__(self) -> None:
        self.leaves: list[Leaf] = []
        self._seen: dict[Any, int] = {}
        self._names: set[str] = set()

    def node(self, value: Any, path: Path) -> Any:
        kind = type(value)
        if kind in _AS_THEY_ARE:
            return value
        if kind is float:
            return value if math.isfinite(value) else {_FLOAT: repr(value)}
        if isinstance(value, dict):
            return self._dict(value, path)
        if kind is list:
            return self._items(value, path)
        if isinstance(value, tuple):
            if hasattr(value, "_fields"):
                raise CheckpointError(
                    f"{show(path)} is a named tuple ({kind.__name__}), whose class cannot be stored. "
                    "Pass value._asdict() or tuple(value)."
                )
            return {_TUPLE: self._items(value, path)}
        leaf = as_leaf(value, self._name(path), lambda: show(path))
        if leaf is None:
            raise CheckpointError(
                f"{show(path)}: cannot save {kind.__module__}.{kind.__qualname__}. A state may hold "
                "dicts, lists, tuples, None, "
                "bool, int, float, str, bytes, numpy arrays and torch tensors: turn the object into "
                "those (its state_dict(), say)."
            )
        return {_LEAF: self._add(leaf)}

    def _items(self, value: Sequence[Any], path: Path) -> Sequence[Any]:
        if set(map(type, value)) <= _AS_THEY_ARE:  # the state of Python's generator is 625 numbers, in every save
            return value if type(value) is tuple else list(value)
        return [self.node(item, (*path, i)) for i, item in enumerate(value)]

    def _dict(self, value: dict[Any, Any], path: Path) -> Any:
        items = []
        for key, item in value.items():
            if type(key) not in (str, int):
                raise CheckpointError(
                    f"{show(path)} has the key {key!r} of type {type(key).__name__}: only str and int "
                    "keys can be saved."
                )
            items.append([key, self.node(item, (*path, key))])
        if versions := _versions(value):
            return {_MODULE: {"versions": versions, "items": items}}
        kind = "counter" if isinstance(value, Counter) else "ordered" if isinstance(value, OrderedDict) else "dict"
        return {kind: items}

    def _add(self, leaf: Leaf) -> int:
        if leaf.identity is not None and leaf.identity in self._seen:
            return self._seen[leaf.identity]
        number = len(self.leaves)
        self.leaves.append(leaf)
        self._names.add(leaf.name)
        if leaf.identity is not None:
            self._seen[leaf.identity] = number
        return number

    def _name(self, path: Path) -> str:
        name = "/".join(map(str, path)) or "value"
        # {0: x, "0": y} gives two leaves one name; names must be unique within an object
        return name if name not in self._names else f"{name}#{len(self.leaves)}"
