"""Names for the tensors of a nested state in a file that has one level of names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tensordb_data.errors import CheckpointError
from tensordb_data.tensors.safetensors import METADATA
from tensordb_data.tensors.tree import Path, show

ALONE = "value"
"""The name of a tensor that is the whole state."""


@dataclass
class Named:
    """The tensors of a state by dotted names.

    Attributes:
        numbers: The number of each leaf, by its name. A tied one has several names.
        renamed: The names of what was nested, by the place in the state: `"['layers'][0]"` is `"layers.0"`.
        left_out: The places of what is no tensor, with what it is.
    """

    numbers: dict[str, int] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def named(tree: Any) -> Named:
    """Name the leaves of a structure, see `tree.Flat`.

    Raises:
        CheckpointError: Two of them get the same name, or a file can have no such name.
    """
    found = Named()
    for path, node in _walk(tree, ()):
        place = show(path).removeprefix("state") or "the whole"
        if not isinstance(node, int) or isinstance(node, bool):
            found.left_out[place] = "None" if node is None else f"a {node}"
            continue
        name = ".".join(map(str, path)) or ALONE
        if name in found.numbers:
            raise CheckpointError(f"two tensors would be called {name!r}, one of them {place}: give one another key")
        if name == METADATA or name != name.encode(errors="replace").decode():
            raise CheckpointError(f"a safetensors file cannot have a tensor called {name!r}: give it another key")
        found.numbers[name] = node
        if len(path) != 1 or type(path[0]) is not str:
            found.renamed[place] = name
    return found


def _walk(node: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """The leaves of a structure with their numbers; and other values with their kinds."""
    if isinstance(node, list):
        for i, item in enumerate(node):
            yield from _walk(item, (*path, i))
    elif isinstance(node, dict):
        ((kind, content),) = node.items()
        if kind == "leaf":
            yield path, content
        elif kind == "float":
            yield path, "float"
        elif kind == "tuple":
            yield from _walk(list(content), path)
        else:
            for key, item in content["items"] if kind == "module" else content:
                yield from _walk(item, (*path, key))
    else:
        yield path, None if node is None else type(node).__name__
