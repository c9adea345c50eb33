"""Load a parameter set: from its document back to the state, with every tensor checked against its digest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tensordb_data.common.chunks import runs_by_size
from tensordb_data.errors import CheckpointError, CorruptBlobError, StorageError
from tensordb_data.params.read_boxes import AT_ONCE, read_boxes
from tensordb_data.params.table import FORMAT, IN_PIECES, STRUCTURE, LeafRow
from tensordb_data.tensors.divided import box_of, divided_like
from tensordb_data.tensors.leaf import Framework, build
from tensordb_data.tensors.pieces import Box, Bytes
from tensordb_data.tensors.read import read_leaves
from tensordb_data.tensors.tree import from_json, leaf_numbers, parts, unflatten

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse


Divided = Callable[[Mapping[str, Any]], Iterable[tuple[LeafRow, Any]]]
"""Which tensors of a set become divided ones (DTensors) here: called with the parts, which have a row in place of each
tensor; gives rows, and DTensors that are divided as theirs will be."""


def load_parts(
    warehouse: Warehouse,
    document: Mapping[str, Any],
    names: Iterable[str] | None,
    framework: Framework,
    divided: Divided | None = None,
) -> dict[str, Any]:
    """Load some of the parts of a set, or all of them. Only the tensors of these parts are read.

    Args:
        warehouse: The warehouse.
        document: The document of the set.
        names: The parts; None for all.
        framework: What tensors become, see `ParameterSet.load`.
        divided: Of which tensors only the part of this process is read, and they become DTensors; None for no one.

    Raises:
        CheckpointError: No such part, or a tensor document is missing.
        CorruptBlobError: Stored bytes do not match their digest; names the tensor.
        StorageError: The blob store failed.
    """
    label = describe(document)
    trees, table = structure(warehouse, document)
    wanted = list(trees) if names is None else list(names)
    for name in wanted:
        if name not in trees:
            raise no_part(label, name, trees)
    with reading_structure(label):
        rows = {number: table[number] for name in wanted for number in leaf_numbers(trees[name])}
        given = {} if divided is None else {name: unflatten(trees[name], rows) for name in wanted}
    like = {} if divided is None else {id(row): tensor for row, tensor in divided(given)}
    del given
    templates = {number: like[id(row)] for number, row in rows.items() if id(row) in like}
    boxes = {number: box_of(tensor) for number, tensor in templates.items()}
    memory = read_rows(warehouse, rows, label, boxes)
    with reading_structure(label):
        leaves = {}
        for n, row in rows.items():
            data = memory.pop(n)
            if n in boxes:
                local = build(row.kind, row.dtype, boxes[n].shape, data, "torch", row.name)
                leaves[n] = divided_like(templates[n], local)
            else:
                leaves[n] = build(row.kind, row.dtype, row.shape, data, framework, row.name)
        return {name: unflatten(trees[name], leaves) for name in wanted}


def no_part(label: str, name: str, there: Iterable[str]) -> CheckpointError:
    """The error to raise for a part that a set does not have."""
    return CheckpointError(f"{label} has no part {name!r}; it has {', '.join(sorted(there))}.")


def read_rows(
    warehouse: Warehouse, rows: Mapping[int, LeafRow], label: str, boxes: Mapping[int, Box] | None = None
) -> dict[int, Bytes]:
    """The bytes of some leaves, uint8 [n], by their numbers. Errors are those of `read_leaves`.

    Args:
        warehouse: The warehouse.
        rows: The leaves.
        label: What they belong to, for messages.
        boxes: Of some leaves the part that is wanted. Of what was saved in pieces, only those that have some of it are
            read.
    """
    boxes = boxes or {}
    apart = {number for number, row in rows.items() if row.pieces or number in boxes}
    memory = {n: np.frombuffer(bytearray(row.inline), np.uint8) for n, row in rows.items() if row.content is None}
    stored = {n: (row.name, row.content) for n, row in rows.items() if row.content is not None and n not in apart}
    memory.update(read_leaves(warehouse, stored, label, {n: rows[n].nbytes for n in stored}))
    memory.update(read_boxes(warehouse, {n: (rows[n], boxes.get(n)) for n in sorted(apart)}, label))
    return memory


def structure(warehouse: Warehouse, document: Mapping[str, Any]) -> tuple[dict[str, Any], list[LeafRow]]:
    """The trees of the parts by name, see `tree.Flat`, and the leaves.

    Raises:
        CorruptBlobError: The structure is damaged.
        CheckpointError: It is missing, or of a newer version.
    """
    label = describe(document)
    with reading_structure(label):
        content = bytes(document["_tdb"]["structure"])
    raw = read_leaves(warehouse, {0: (STRUCTURE, content)}, label)[0]
    with reading_structure(label):
        whole = from_json(raw.data)
        if whole.get("format") not in (FORMAT, IN_PIECES):
            raise CheckpointError(
                f"{label} has format {whole.get('format')}; this version reads {FORMAT} and {IN_PIECES}. Upgrade to "
                "load it."
            )
        return parts(whole["tree"]), [LeafRow.parse(row) for row in whole["leaves"]]


@contextlib.contextmanager
def reading_structure(label: str) -> Iterator[None]:
    """What goes wrong while a structure is read is that it is damaged."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        raise CorruptBlobError(
            f"the structure of {label} is damaged: expected what a save writes, found {type(error).__name__}: {error}"
        ) from error


def verify(warehouse: Warehouse, document: Mapping[str, Any]) -> bool:
    """Whether the whole set is there and every byte is right."""
    label = describe(document)
    try:
        _, table = structure(warehouse, document)
        for low, high in runs_by_size((row.nbytes or 0 for row in table), AT_ONCE):
            read_rows(warehouse, dict(enumerate(table[low:high])), label)
    except (StorageError, CheckpointError):
        return False
    return True


def suggest_intact_set(warehouse: Warehouse, damaged: Mapping[str, Any]) -> str:
    """A sentence for the error about a damaged set, which names the newest set of its run that is intact."""
    run, training = damaged.get("run"), "training" in damaged["_tdb"]["parts"]
    scope = {"_tdb.p": warehouse.project, "run": run, "_id": {"$ne": damaged["_id"]}}
    for document in warehouse.index["params"].find(scope, sort=[("_tdb.s", -1), ("_id", -1)]):
        if ("training" in document["_tdb"]["parts"]) == training and verify(warehouse, document):
            how = f"restore(step={document['step']}) continues from there"
            return (
                f"The newest intact one is {describe(document)}: "
                f"{how if training else 'find it by its _id and load that'}."
            )
    return "No other set of this run is intact." if run is not None else "No other set without a run is intact."


def describe(document: Mapping[str, Any]) -> str:
    """A set in words, for messages."""
    text = f"parameter set {document['_id']}"
    if document.get("run") is not None:
        text += f" of run {document['run']!r}"
    if document.get("step") is not None:
        text += f" at step {document['step']}"
    return text
