"""The tensors of a checkpoint: what they are, without reading them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tensordb_data.common.listing import Listing, Row
from tensordb_data.common.sizes import show_size
from tensordb_data.params.load import describe, reading_structure, structure
from tensordb_data.tensors.tree import leaf_numbers

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse


@dataclass(frozen=True)
class TensorInfo(Row):
    """One tensor of a checkpoint, or another value that is stored as one."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("part", "name", "dtype", "shape", "size")
    NUMBERS: ClassVar[frozenset[str]] = frozenset(("size",))

    part: str
    """The part of the checkpoint: `"model"`, `"optimizer"`."""
    name: str
    """Where it is in the part, with dots: `"layers.0.weight"`."""
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    """Its bytes, not compressed."""
    digest: str | None
    """The hash of its bytes, in hexadecimal digits, which equal tensors share; None for one that is small enough to lie
    in the structure of the checkpoint."""

    def cells(self) -> tuple[Any, ...]:
        """What a table shows."""
        return self.part, self.name, self.dtype, list(self.shape), show_size(self.nbytes)


def tensors_of(warehouse: Warehouse, document: Mapping[str, Any]) -> Listing[TensorInfo]:
    """See `ParameterSet.tensors`."""
    label = describe(document)
    trees, table = structure(warehouse, document)
    found: list[TensorInfo] = []
    with reading_structure(label):
        for part, tree in trees.items():
            names = _names(tree)
            for number in sorted(leaf_numbers(tree)):
                row = table[number]
                nbytes = len(row.inline) if row.nbytes is None else row.nbytes
                digest = None if row.content is None else row.content.hex()
                name = names.get(number, row.name)
                found.append(TensorInfo(part, name, row.dtype.removeprefix("torch."), row.shape, nbytes, digest))
    return Listing(found, f"{label} has no tensors")


def _names(tree: Any) -> dict[int, str]:
    """The place of each leaf in a tree, with dots; of a tied one, the first."""
    found: dict[int, str] = {}

    def walk(node: Any, path: tuple[str, ...]) -> None:
        if isinstance(node, list):
            for i, inner in enumerate(node):
                walk(inner, (*path, str(i)))
            return
        if not isinstance(node, dict):
            return
        ((kind, content),) = node.items()
        if kind == "leaf":
            found.setdefault(content, ".".join(path))
        elif kind == "tuple":
            walk(content, path)
        elif kind != "float":
            for key, inner in content["items"] if kind == "module" else content:
                walk(inner, (*path, str(key)))

    walk(tree, ())
    return found
