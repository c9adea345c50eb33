"""Export the parameters of a set as one file: safetensors, or what `torch.load` reads."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from tensordb_data.common.chunks import runs_by_size
from tensordb_data.common.html import Report
from tensordb_data.errors import CheckpointError, StorageError
from tensordb_data.params.exchange.names import Named, named
from tensordb_data.params.exchange.source import shown
from tensordb_data.params.exchange.torch_tree import as_torch
from tensordb_data.params.exchange.whole_file import whole_file
from tensordb_data.params.load import LeafRow, describe, no_part, read_rows, reading_structure, structure
from tensordb_data.tensors import safetensors
from tensordb_data.tensors.leaf import Leaf, import_torch
from tensordb_data.tensors.tree import leaf_numbers

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_AT_ONCE = 128 << 20  # bytes of tensors in memory, unless one alone is larger
_TORCH = (".pt", ".pth", ".bin")
_FORMAT, _ABOUT = "format", "tensordb"  # what a safetensors file says of itself


@dataclass(frozen=True)
class Exported(Report):
    """What an export wrote."""

    path: Path
    """The file."""
    tensors: int
    """The number of its tensors. Tied ones count once."""
    nbytes: int
    """Bytes of the file."""
    tied: Mapping[str, str]
    """Tensors that are the same as another one, whose name is the value. In a safetensors file that one stands for
    both, as `safetensors.torch.save_model` has it; a tied model takes it so."""
    renamed: Mapping[str, str]
    """The dotted names of what was nested, by its place: `"['layers'][0]"` is `"layers.0"`."""
    left_out: Mapping[str, str]
    """What is not in the file, since it is no tensor, by its place, with what it is."""


def export_set(
    warehouse: Warehouse, document: Mapping[str, Any], path: str | Path, part: str, overwrite: bool
) -> Exported:
    """Write one part of a set into a file; see `ParameterSet.export`."""
    path = Path(path)
    label = describe(document)
    if path.suffix not in (".safetensors", *_TORCH):
        raise CheckpointError(
            f"expected a name that ends with .safetensors or {', '.join(_TORCH)}; found {path.name!r}"
        )
    if path.suffix in _TORCH:
        import_torch()
    trees, table = structure(warehouse, document)
    if part not in trees:
        raise no_part(label, part, trees)
    write = _torch if path.suffix in _TORCH else _safetensors
    with whole_file(path, overwrite) as file:
        report = write(warehouse, document, trees[part], table, path, file)
    if report.left_out:
        warnings.warn(f"{path.name} is without what is no tensor: {shown(report.left_out)}", stacklevel=3)
    return report


def _safetensors(
    warehouse: Warehouse, document: Mapping[str, Any], tree: Any, table: Sequence[LeafRow], path: Path, file: BinaryIO
) -> Exported:
    with reading_structure(describe(document)):
        names = named(tree)
        first, tied = _first_names(names, table)
        leaves = [
            Leaf(name, "torch", _little(table[n].dtype), table[n].shape, table[n].nbytes or 0, None)
            for n, name in first.items()
        ]
    if not first:
        raise _nothing(document)
    kind = "pt" if any(table[n].kind == "torch" for n in first) else "np"
    about = {"set": str(document["_id"]), "run": document.get("run"), "step": document.get("step")}
    front, _ = safetensors.header(leaves, {**tied, _FORMAT: kind, _ABOUT: json.dumps(about)})
    file.write(front)
    for number, data in _streamed(warehouse, document, table, list(first)):
        file.write(_little_endian(table[number], data).data)
        del data  # before the next ones are read
    return Exported(path, len(first), file.tell(), tied, names.renamed, names.left_out)


def _first_names(names: Named, table: Sequence[LeafRow]) -> tuple[dict[int, str], dict[str, str]]:
    """The tensors in the order in which they are written, each with its first name; and its other names with that.

    What is no tensor is moved to what is left out.
    """
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, number in names.numbers.items():
        row = table[number]
        if row.kind == "bytes":
            names.left_out[name] = "bytes"
        elif row.nbytes is None or not safetensors.has_name(_little(row.dtype)):
            raise CheckpointError(
                f"{name!r} is of {row.dtype}, for which the format safetensors has no name: export it as .pt, or leave "
                "it out of what is saved"
            )
        elif (other := first.setdefault(number, name)) != name:
            if name in (_FORMAT, _ABOUT):
                raise CheckpointError(f"{name!r} is tied to {other!r}, and a safetensors file cannot say so: rename it")
            tied[name] = other
    # the largest numbers first: so all of them lie at a multiple of their size
    order = sorted(first, key=lambda number: -_itemsize(table[number]))
    return {number: first[number] for number in order}, tied


def _torch(
    warehouse: Warehouse, document: Mapping[str, Any], tree: Any, table: Sequence[LeafRow], path: Path, file: BinaryIO
) -> Exported:
    label = describe(document)
    with reading_structure(label):
        rows = {number: table[number] for number in leaf_numbers(tree)}
        state = as_torch(tree, rows, lambda some: read_rows(warehouse, some, label))
    if not state.tensors:
        raise _nothing(document)
    try:
        import_torch().save(state.value, file)
    except RuntimeError as error:  # torch does not say that a disk is full in another way
        raise StorageError(f"{path} cannot be written: {error}") from error
    return Exported(path, state.tensors, file.tell(), state.tied, {}, state.left_out)


def _nothing(document: Mapping[str, Any]) -> CheckpointError:
    return CheckpointError(f"{describe(document)}: expected tensors to export, found none")


def _streamed(
    warehouse: Warehouse, document: Mapping[str, Any], table: Sequence[LeafRow], order: Sequence[int]
) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """The bytes of tensors, in order, some at a time."""
    label = describe(document)
    for low, high in runs_by_size((table[number].nbytes or 0 for number in order), _AT_ONCE):
        memory = read_rows(warehouse, {number: table[number] for number in order[low:high]}, label)
        for number in order[low:high]:
            yield number, memory.pop(number)


def _little(dtype: str) -> str:
    return f"<{dtype[1:]}" if dtype.startswith(">") else dtype


def _little_endian(row: LeafRow, data: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if not row.dtype.startswith(">"):
        return data
    return data.view(row.dtype).astype(_little(row.dtype)).view(np.uint8)


def _itemsize(row: LeafRow) -> int:
    size = 1
    for length in row.shape:
        size *= length
    return (row.nbytes or 0) // size if size else 1
