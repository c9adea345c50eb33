"""The two sides of a comparison: a frozen set, or the samples that a Selection finds now."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from tensordb_data.frozen.bound_query import FrozenQuery, block_documents
from tensordb_data.frozen.columns import PROVENANCE, Block
from tensordb_data.frozen.frozen_set import FrozenSet
from tensordb_data.frozen.structure import BLOB, HOLES, VALUE, Piece
from tensordb_data.mongo.retry import read_all
from tensordb_data.samples.sample import Sample, make_samples
from tensordb_data.time.blob_content import inline_checksums
from tensordb_data.time.read_now import read_samples

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery

_FETCH = 1000
_BLOCKS = 8

Rows = NDArray[np.int64]


class Side(abc.ABC):
    """Samples, in chunks. A row counts in all of them."""

    starts: Rows
    """int64 [chunks + 1]: the row at which each chunk begins; and how many rows there are."""
    name: str
    """How people call it."""

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    @abc.abstractmethod
    def columns(self) -> set[str]:
        """The names of its columns, as in a structure."""

    @abc.abstractmethod
    def piece(self, column: str, chunk: int) -> Piece:
        """What tells whether a column of a chunk is that of another one; None if nothing does."""

    @abc.abstractmethod
    def blocks(self, columns: Iterable[str], chunks: Sequence[int]) -> Iterator[Block]:
        """Some columns of some chunks."""

    @abc.abstractmethod
    def samples(self, rows: Rows) -> list[Sample | None]:
        """The samples in some rows; None for one that is there no more."""

    def joined(self, columns: Iterable[str], chunks: Sequence[int]) -> Block:
        """Some columns of some chunks, as one block; of at least one chunk."""
        return Block.joined(list(self.blocks(list(columns), chunks)))


class FrozenSide(Side):
    """The samples of a frozen set.

    Args:
        bound: The query that selects it.
    """

    def __init__(self, bound: FrozenQuery) -> None:
        self._set: FrozenSet = bound.set
        self._limit = bound.query.limit
        self.name = self._set.label
        structure = self._set.structure
        self._whole = self._limit is None and HOLES not in structure.columns
        if self._whole:
            sizes = list(structure.rows)
        else:
            sizes = [len(block) for block in self._set.blocks((), (), limit=self._limit)]
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._kept: dict[int, Block] = {}

    @property
    def columns(self) -> set[str]:
        return {name for name in self._set.structure.columns if name.startswith((VALUE, BLOB))}

    def piece(self, column: str, chunk: int) -> Piece:
        if not self._whole:
            return None
        pieces = self._set.structure.columns.get(column)
        return None if pieces is None else pieces[chunk] or "="  # nothing in both is the same, too

    def blocks(self, columns: Iterable[str], chunks: Sequence[int]) -> Iterator[Block]:
        named = list(columns)
        values = [name.removeprefix(VALUE) for name in named if name.startswith(VALUE)]
        blobs = [name.removeprefix(BLOB) for name in named if name.startswith(BLOB)]
        for chunk, block in zip(chunks, self._set.blocks(values, blobs, chunks=chunks), strict=True):
            size = int(self.starts[chunk + 1] - self.starts[chunk])
            yield block if len(block) == size else block.take(np.arange(size))

    def samples(self, rows: Rows) -> list[Sample | None]:
        found: list[Sample | None] = [None] * len(rows)
        of = np.searchsorted(self.starts, rows, side="right") - 1
        project, id = self._set.warehouse.project, self._set.id
        for chunk in np.unique(of).tolist():
            at = np.flatnonzero(of == chunk)
            some = self._block(chunk).take(rows[at] - self.starts[chunk])
            samples = make_samples(self._set.warehouse, list(block_documents(some, project, 0, id)))
            for place, sample in zip(at.tolist(), samples, strict=True):
                found[place] = sample
        return found

    def _block(self, chunk: int) -> Block:
        if chunk not in self._kept:
            while len(self._kept) >= _BLOCKS:
                del self._kept[next(iter(self._kept))]
            (self._kept[chunk],) = self._set.blocks(chunks=[chunk])
        return self._kept[chunk]


class LiveSide(Side):
    """The samples that a query finds now, of one state of the data.

    Args:
        bound: The query.
    """

    def __init__(self, bound: BoundQuery) -> None:
        self._bound, self.name = bound, f"the samples of {bound.query.brief}"
        blocks = read_samples(bound, lambda reading: list(reading.blocks(inline_checksums)))
        self._block = Block.joined(blocks) if blocks else None
        size = 0 if self._block is None else len(self._block)
        self.starts = np.array([0, size] if size else [0], np.int64)

    @property
    def columns(self) -> set[str]:
        if self._block is None:
            return set()
        return {*(VALUE + name for name in self._block.values), *(BLOB + name for name in self._block.refs)}

    def piece(self, column: str, chunk: int) -> Piece:
        return None

    def blocks(self, columns: Iterable[str], chunks: Sequence[int]) -> Iterator[Block]:
        named, block = set(columns), self._block
        if block is not None and len(chunks):
            values = {name: column for name, column in block.values.items() if VALUE + name in named}
            refs = {name: found for name, found in block.refs.items() if BLOB + name in named}
            yield Block(block.ids, block.datasets, block.dataset, values, refs)

    def samples(self, rows: Rows) -> list[Sample | None]:
        assert self._block is not None
        warehouse = self._bound.warehouse
        ids = [self._block.id(row) for row in rows.tolist()]
        docs: dict[ObjectId, Mapping[str, Any]] = {}
        for at in range(0, len(ids), _FETCH):
            wanted = {"_tdb.p": warehouse.project, "_id": {"$in": ids[at : at + _FETCH]}}
            docs.update((doc["_id"], doc) for doc in read_all(warehouse.index["data"].find(wanted)))
        there = [docs[id] for id in ids if id in docs]
        samples = {sample.id: sample for sample in make_samples(warehouse, there)}
        return [samples.get(id) for id in ids]


def side_of(bound: BoundQuery) -> Side:
    """A side of a comparison.

    Raises:
        NotFoundError: There is no such set, or no such dataset.
    """
    return FrozenSide(bound) if isinstance(bound, FrozenQuery) else LiveSide(bound)


def compared(one: Side, other: Side) -> list[str]:
    """The columns in which samples are compared: all but who has annotated a value."""
    return sorted((one.columns | other.columns) - {VALUE + PROVENANCE})
