"""Load a parameter set: from its document back to the state, with every tensor checked against its digest."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tensordb_data.errors import CheckpointError, StorageError
from tensordb_data.params.save import FORMAT, STRUCTURE
from tensordb_data.tensors.leaf import Framework, build
from tensordb_data.tensors.read import read_leaves
from tensordb_data.tensors.tree import from_json, leaf_numbers, parts, unflatten

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse


def load_parts(
    warehouse: Warehouse, document: Mapping[str, Any], names: Iterable[str] | None, framework: Framework
) -> dict[str, Any]:
    """Load some of the parts of a set, or all of them. Only the tensors of these parts are read.

    Args:
        warehouse: The warehouse.
        document: The document of the set.
        names: The parts; None for all.
        framework: What tensors become, see `ParameterSet.load`.

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
            raise CheckpointError(f"{label} has no part {name!r}; it has {', '.join(sorted(trees))}.")
    numbers = set().union(*(leaf_numbers(trees[name]) for name in wanted))
    memory: dict[int, np.ndarray[Any, Any]] = {}
    stored: dict[int, tuple[str, bytes]] = {}
    for number in numbers:
        name, _, _, _, content, inline = table[number]
        if content is None:
            memory[number] = np.frombuffer(bytearray(base64.b64decode(inline)), np.uint8)
        else:
            stored[number] = (name, bytes.fromhex(content))
    memory.update(read_leaves(warehouse, stored, label))
    leaves = {
        n: build(table[n][1], table[n][2], tuple(table[n][3]), memory[n], framework, table[n][0]) for n in numbers
    }
    return {name: unflatten(trees[name], leaves) for name in wanted}


def structure(warehouse: Warehouse, document: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """The trees of the parts by name, see `tree.Flat`, and for each leaf: name, kind, dtype, shape, digest, bytes."""
    label = describe(document)
    about = document["_tdb"]
    raw = read_leaves(warehouse, {0: (STRUCTURE, bytes(about["structure"]))}, label)[0]
    whole = from_json(raw.data)
    if whole.get("format") != FORMAT:
        raise CheckpointError(
            f"{label} has format {whole.get('format')}; this version reads {FORMAT}. Upgrade to load it."
        )
    return parts(whole["tree"]), whole["leaves"]


def verify(warehouse: Warehouse, document: Mapping[str, Any]) -> bool:
    """Whether the whole set is there and every byte is right."""
    try:
        load_parts(warehouse, document, None, "numpy")
    except (StorageError, CheckpointError):
        return False
    return True


def suggest_intact_set(warehouse: Warehouse, damaged: Mapping[str, Any]) -> str:
    """A sentence for the error about a damaged set, which names the newest set of its run that is intact."""
    run, training = damaged.get("run"), damaged["_tdb"]["parts"] != ["model"]
    scope = {"_tdb.p": warehouse.project, "run": run, "_id": {"$ne": damaged["_id"]}}
    for document in warehouse.index["params"].find(scope, sort=[("_tdb.s", -1), ("_id", -1)]):
        if (document["_tdb"]["parts"] != ["model"]) == training and verify(warehouse, document):
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
