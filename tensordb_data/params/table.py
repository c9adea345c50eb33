"""The table of the tensors of a set, as its structure has it: a row for each, with the places of its bytes.

A row is `[name, kind, dtype, shape, content, inline]`: the digest of its bytes as hex, or for a small tensor the bytes
themselves. A tensor that several processes have saved together has a list of pieces in place of `content`:
`[offset, shape, content, inline]` each.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, get_args

from tensordb_data.errors import CheckpointError
from tensordb_data.tensors.leaf import Kind, nbytes_of
from tensordb_data.tensors.pieces import Box, is_whole

FORMAT = 1
IN_PIECES = 2
"""The format of a structure that has pieces. Readers that do not know them refuse it."""
STRUCTURE = "structure.json"
"""Name of the tensor that says what a set consists of."""

Table = list[list[Any]]


def is_divided(row: Sequence[Any]) -> bool:
    """Whether a row has pieces."""
    return isinstance(row[4], list)


def stored_parts(row: Sequence[Any]) -> Iterator[tuple[str | None, str | None]]:
    """Digest and inline bytes of the tensor of a row, or of each of its pieces."""
    if is_divided(row):
        yield from ((content, inline) for _, _, content, inline in row[4])
    else:
        yield row[4], row[5]


def contents_of(table: Table) -> list[bytes]:
    """The content addresses of all tensors and pieces that are stored, each once."""
    found = (bytes.fromhex(content) for row in table for content, _ in stored_parts(row) if content is not None)
    return list(dict.fromkeys(found))


def refuse_incomplete(table: Table) -> None:
    """Raise if the pieces of a tensor are not the whole tensor.

    Raises:
        CheckpointError: It is so.
    """
    known: set[tuple[Any, ...]] = set()
    for row in filter(is_divided, table):
        shape, boxes = tuple(row[3]), [Box(tuple(piece[0]), tuple(piece[1])) for piece in row[4]]
        if (shape, *boxes) not in known and not is_whole(shape, boxes):
            raise CheckpointError(
                f"tensor {row[0]!r} of shape {shape} is divided over processes, and not all of it was given: found "
                f"{len(boxes)} parts of it. Every process of the training saves its own, by a StepCheckpointer of its "
                "own; what is to be saved by one process is gathered first (DTensor.full_tensor)."
            )
        known.add((shape, *boxes))


def merge(table: Table, others: Sequence[Table]) -> Table:
    """Add the pieces that other processes have stored to the rows of process 0. Of two of one place the first counts.

    Raises:
        CheckpointError: Another process has something else under a name.
    """
    rows = {row[0]: [*row[:4], list(row[4]), row[5]] if is_divided(row) else row for row in table}
    for rank, other in enumerate(others, 1):
        for name, _, dtype, shape, pieces, _ in other:
            mine = rows.get(name)
            if mine is None or not is_divided(mine) or mine[2] != dtype or mine[3] != shape:
                there = "nothing" if mine is None else f"a {mine[2]} of shape {tuple(mine[3])}"
                raise CheckpointError(
                    f"process {rank} has a part of {name!r}, a {dtype} of shape {tuple(shape)}, where process 0 has "
                    f"{there}: all processes must divide the same tensors"
                )
            known = {(*piece[0], *piece[1]) for piece in mine[4]}  # parts that several processes have the same of
            mine[4] += [piece for piece in pieces if (*piece[0], *piece[1]) not in known]
    for row in filter(is_divided, rows.values()):
        row[4].sort(key=lambda piece: piece[0])
    return list(rows.values())


class Piece(NamedTuple):
    """A part of a tensor that is stored by itself."""

    box: Box
    nbytes: int
    content: bytes | None
    """Its digest; None if it is small."""
    inline: bytes
    """The bytes of a small one."""


class LeafRow(NamedTuple):
    """What the stored structure says of a leaf."""

    name: str
    kind: Kind
    dtype: str
    shape: tuple[int, ...]
    nbytes: int | None
    """Its bytes; None if its dtype does not tell them here."""
    content: bytes | None
    """Its digest; None for a small leaf, and for one in pieces."""
    inline: bytes
    """The bytes of a small leaf."""
    pieces: tuple[Piece, ...] = ()
    """Of what it consists, if it was saved by several processes."""

    @property
    def itemsize(self) -> int:
        """Bytes of an element; 0 without elements."""
        size = 1
        for length in self.shape:
            size *= length
        return (self.nbytes or 0) // size if size else 0

    @classmethod
    def parse(cls, row: Sequence[Any]) -> LeafRow:
        """Read one row of the structure.

        Raises:
            ValueError: It is malformed, and so does TypeError say.
        """
        name, kind, dtype, shape, content, text = row
        nbytes = nbytes_of(dtype, shape)
        if kind not in get_args(Kind) or not isinstance(name, str):
            raise ValueError(f"a leaf {name!r} of the kind {kind!r}")
        if isinstance(content, list):
            return cls(name, kind, dtype, tuple(shape), nbytes, None, b"", _pieces(name, dtype, shape, content))
        stored = _stored(content, text, nbytes, f"leaf {name!r} of {dtype} {shape}")
        return cls(name, kind, dtype, tuple(shape), nbytes, *stored)


def _stored(content: Any, text: Any, nbytes: int | None, of: str) -> tuple[bytes | None, bytes]:
    """The digest of a tensor or a piece, or the bytes of a small one."""
    if content is not None:
        return bytes.fromhex(content), b""
    inline = base64.b64decode(text)
    if nbytes not in (None, len(inline)):
        raise ValueError(f"{len(inline)} bytes for the {of}")
    return None, inline


def _pieces(name: str, dtype: str, shape: Sequence[int], said: Sequence[Any]) -> tuple[Piece, ...]:
    pieces = []
    for offset, part, content, text in said:
        nbytes = nbytes_of(dtype, part)
        if nbytes is None or not all(type(n) is int and n >= 0 for n in offset):
            raise ValueError(f"a piece of the leaf {name!r} of {dtype} at {offset}")
        stored = _stored(content, text, nbytes, f"piece of the leaf {name!r} of {dtype} {part}")
        pieces.append(Piece(Box(tuple(offset), tuple(part)), nbytes, *stored))
    if not is_whole(shape, [piece.box for piece in pieces]):
        raise ValueError(f"the pieces of the leaf {name!r}, which are not all of {shape}")
    return tuple(pieces)
