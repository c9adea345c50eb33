"""Packing: puts sequences one behind the other into the rows of a batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensordb_data.errors import SampleError
from tensordb_data.schema import Array
from tensordb_data.stream.fetch.decode import Column
from tensordb_data.stream.order.items import Items
from tensordb_data.stream.plan.sample_table import FieldLayout
from tensordb_data.stream.spec import Ragged
from tensordb_data.stream.transform.collate import Batch, Name, slice_batch


@dataclass(frozen=True)
class Documents:
    """The places of m documents in a batch. A document is a sample, or a piece of one."""

    row: NDArray[np.int64]
    """int64 [m]: the row of the batch of each. They ascend."""
    items: Items
    """What of its sample each one is."""
    rows: int
    """The number of rows of the batch."""

    def take(self, kept: NDArray[np.int64]) -> Documents:
        """Those of the documents that were loaded."""
        return Documents(self.row[kept], self.items.take(kept), self.rows)


@dataclass(frozen=True)
class Packing:
    """How batches of a stream are packed."""

    size: int
    """The length of a row."""
    single: Collection[str]
    """Fields that are no sequences, although they may be arrays of one dimension."""
    ragged: Ragged
    """What becomes of values of such fields that differ in shape."""

    def batch(self, columns: Mapping[str, Column], documents: Documents, name: Name) -> Batch:
        """Make a batch of documents.

        Args:
            columns: The values of m samples, of which the documents are made.
            documents: Where they go.
            name: Returns how errors speak of a sample.

        Returns:
            For each field that is an array of one dimension, [rows, size] with zeros behind the last document of a row,
            and two fields int32 [rows, size]: `<field>_segments`, the number of the document in its row from 1 on, 0
            behind the last; and `<field>_positions`, the place in the document. `cu_seqlens`, int32 [k + 1]: where each
            document, and each room that is left, begins in the flattened [rows * size], and then rows * size. Each
            other field has one value a document, in the same order.

        Raises:
            SampleError: A sample is longer than the index says, its fields differ in length, or none is a sequence.
        """
        found = {field: column for field, column in columns.items() if self._is_sequence(field, column)}
        if not found:
            raise SampleError(
                f"`pack` needs a field that is an array of one dimension, and there is none among {', '.join(columns)}:"
                " name one with `fields`, or return one from the transform"
            )
        lengths, batch = np.empty(0, np.int64), Batch()
        for field, column in found.items():
            parts = self._parts(field, column, documents.items, name)
            own = np.array([len(part) for part in parts], np.int64)
            if batch and (differ := np.flatnonzero(own != lengths)).size:
                row, first = int(differ[0]), next(iter(found))
                raise SampleError(
                    f"{name(row)}: field {field!r} has the length {own[row]}, and {first!r} {lengths[row]}; the arrays"
                    " of a packed sample have one length"
                )
            if not batch:
                lengths = own
                places = _places(documents.row, lengths, self.size)
                segments, positions = self._numbers(documents, lengths, places)
            packed = np.zeros(documents.rows * self.size, parts[0].dtype)
            packed[places] = np.concatenate(parts)
            batch[field] = packed.reshape(documents.rows, self.size)
            batch[f"{field}_segments"], batch[f"{field}_positions"] = segments.copy(), positions.copy()
        batch["cu_seqlens"] = _bounds(documents, lengths, self.size)
        others = {field: column for field, column in columns.items() if field not in found}
        return {**batch, **slice_batch(others, 0, len(documents.row), self.ragged, name)}

    def _is_sequence(self, field: str, column: Column) -> bool:
        first = column[0]
        return isinstance(first, np.ndarray) and first.ndim == 1 and field not in self.single

    def _parts(self, field: str, column: Column, items: Items, name: Name) -> list[NDArray[Any]]:
        parts: list[NDArray[Any]] = []
        for row, value in enumerate(column):
            if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype != column[0].dtype:
                found = f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
                raise SampleError(
                    f"{name(row)}, field {field!r}: expected {column[0].dtype} of one dimension as in the rest of the"
                    f" batch, found {found}"
                )
            if len(value) > items.whole[row]:
                raise SampleError(
                    f"{name(row)}: field {field!r} has the length {len(value)}, and by the index the sample has"
                    f" {items.whole[row]}; name a field with the lengths that the samples have at the end, length="
                )
            offset = int(items.offset[row])
            parts.append(value[offset : offset + int(items.length[row])])
        return parts

    def _numbers(
        self, documents: Documents, lengths: NDArray[np.int64], places: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The segments and positions of a batch."""
        shape = (documents.rows, self.size)
        segments, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        starts = np.cumsum(lengths) - lengths
        segments.reshape(-1)[places] = np.repeat(_within(documents.row) + 1, lengths)
        positions.reshape(-1)[places] = np.arange(len(places)) - np.repeat(starts, lengths)
        return segments, positions


def single_fields(layout: FieldLayout) -> frozenset[str]:
    """The fields of which all arrays have one shape: they belong to a sample as a whole, and are no sequences."""
    return frozenset(
        name
        for name in layout.fields
        for schema in layout.schemas.values()
        if isinstance(found := schema.get(name), Array) and found.fixed_shape is not None
    )


def _within(row: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of each document in its row, from 0 on."""
    first = np.searchsorted(row, row, side="left")
    return np.arange(len(row)) - first


def _starts(row: NDArray[np.int64], lengths: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Where each document begins in the flattened batch."""
    before = np.cumsum(lengths) - lengths
    starts: NDArray[np.int64] = row * size + before - before[np.searchsorted(row, row, side="left")]
    return starts


def _places(row: NDArray[np.int64], lengths: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Where each item of each document goes in the flattened batch."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(_starts(row, lengths, size) - before, lengths) + np.arange(int(lengths.sum()))


def _bounds(documents: Documents, lengths: NDArray[np.int64], size: int) -> NDArray[np.int32]:
    """Where the documents, and the rooms behind them, begin; and the end of the batch."""
    used = np.bincount(documents.row, lengths, documents.rows).astype(np.int64)
    room = np.flatnonzero(used < size)
    begins = np.concatenate([_starts(documents.row, lengths, size), room * size + used[room]])
    return np.append(np.sort(begins), documents.rows * size).astype(np.int32)
