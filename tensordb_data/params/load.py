"""Load a parameter set: from its document back to the state, with every tensor checked against its digest."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np

from tensordb_data.errors import CheckpointError, CorruptBlobError, StorageError
from tensordb_data.params.save import FORMAT, STRUCTURE
from tensordb_data.tensors.leaf import Framework, Kind, build, nbytes_of
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
            raise no_part(label, name, trees)
    with reading_structure(label):
        rows = {number: table[number] for name in wanted for number in leaf_numbers(trees[name])}
    memory = read_rows(warehouse, rows, label)
    with reading_structure(label):
        leaves = {n: build(row.kind, row.dtype, row.shape, memory[n], framework, row.name) for n, row in rows.items()}
        return {name: unflatten(trees[name], leaves) for name in wanted}


def no_part(label: str, name: str, there: Iterable[str]) -> CheckpointError:
    """The error to raise for a part that a set does not have."""
    return CheckpointError(f"{label} has no part {name!r}; it has {', '.join(sorted(there))}.")


def read_rows(warehouse: Warehouse, rows: Mapping[int, LeafRow], label: str) -> dict[int, np.ndarray[Any, Any]]:
    """The bytes of some leaves, uint8 [n], by their numbers. Errors are those of `read_leaves`."""
    memory = {n: np.frombuffer(bytearray(row.inline), np.uint8) for n, row in rows.items() if row.content is None}
    stored = {n: (row.name, row.content) for n, row in rows.items() if row.content is not None}
    memory.update(read_leaves(warehouse, stored, label, {n: row.nbytes for n, row in rows.items()}))
    return memory


class LeafRow(NamedTuple):
    """What the stored structure says of a leaf."""

    name: str
    kind: Kind
    dtype: str
    shape: tuple[int, ...]
    nbytes: int | None
    """Its bytes; None if its dtype does not tell them here."""
    content: bytes | None
    """Its digest; None for a small leaf."""
    inline: bytes
    """The bytes of a small leaf."""

    @classmethod
    def parse(cls, row: Sequence[Any]) -> LeafRow:
        """Read one row of the structure.

        Raises:
            ValueError: It is malformed, and so does TypeError say.
        """
        name, kind, dtype, shape, content, text = row
        inline = b"" if content is not None else base64.b64decode(text)
        nbytes = nbytes_of(dtype, shape)
        if kind not in get_args(Kind) or not isinstance(name, str):
            raise ValueError(f"a leaf {name!r} of the kind {kind!r}")
        if content is None and nbytes not in (None, len(inline)):
            raise ValueError(f"{len(inline)} bytes for the leaf {name!r} of {dtype} {shape}")
        return cls(name, kind, dtype, tuple(shape), nbytes, None if content is None else bytes.fromhex(content), inline)


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
        if whole.get("format") != FORMAT:
            raise CheckpointError(
                f"{label} has format {whole.get('format')}; this version reads {FORMAT}. Upgrade to load it."
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
    try:
        load_parts(warehouse, document, None, "numpy")
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
