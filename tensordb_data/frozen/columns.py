"""Columns of samples: what a frozen set holds of some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from bson import Int64, ObjectId
from numpy.typing import NDArray

from tensordb_data.blobs.segments.references import BlobRefs, joined_refs

MISSING: Final = object()
"""In a list of values: the sample does not have the field."""

TAGS, PROVENANCE = "tags", "provenance"
_TYPES: Mapping[type, tuple[frozenset[type], Any]] = {
    bool: (frozenset((bool,)), np.bool_),
    int: (frozenset((int, Int64)), np.int64),
    float: (frozenset((float,)), np.float64),
}

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Values:
    """One index field of m samples.

    Attributes:
        data: int64, float64, bool or object [m]. Where the field is absent: 0 or None.
        absent: bool [m]: which samples do not have it; None if all have it.
    """

    data: NDArray[Any]
    absent: Mask | None = None

    def __len__(self) -> int:
        return len(self.data)

    def take(self, rows: NDArray[Any]) -> Values:
        """The values at those rows, or of a mask."""
        return Values(self.data[rows], None if self.absent is None else self.absent[rows])

    def items(self, missing: Any = None) -> list[Any]:
        """The values as Python objects; `missing` where there is none."""
        found: list[Any] = self.data.tolist()
        if self.absent is not None:
            for row in np.flatnonzero(self.absent).tolist():
                found[row] = missing
        return found

    def plain(self) -> NDArray[Any]:
        """The values as a plan has them: objects, with None, if some are absent."""
        if self.absent is None or not self.absent.any():
            return self.data
        found = self.data.astype(object)
        found[self.absent] = None
        return found

    @classmethod
    def nothing(cls, m: int) -> Values:
        """The values of m samples that do not have the field."""
        return cls(np.full(m, None, object), np.ones(m, np.bool_))

    @classmethod
    def of(cls, items: Sequence[Any]) -> Values:
        """Values of any kind, in the form that they alone decide: numbers of one kind are an array of them."""
        data = np.empty(len(items), object)
        data[:] = items
        absent: Mask = np.fromiter((item is MISSING for item in items), np.bool_, len(items))
        kinds = {type(item) for item in items if item is not MISSING}
        dtype = next((made for names, made in _TYPES.values() if kinds and kinds <= names), None)
        if dtype is not None:
            data[absent] = 0
            try:
                return cls(data.astype(dtype), absent if absent.any() else None)
            except OverflowError:  # another tool has written an integer that no field has
                pass
        data[absent] = None
        return cls(data, absent if absent.any() else None)

    @classmethod
    def joined(cls, parts: Sequence[Values]) -> Values:
        """The values of several parts, one after the other, in the form of `of`."""
        if len(parts) == 1:
            return parts[0]
        if len({part.data.dtype for part in parts}) == 1 and parts[0].data.dtype != object:
            absent = None
            if any(part.absent is not None for part in parts):
                absent = np.concatenate(
                    [np.zeros(len(part), np.bool_) if part.absent is None else part.absent for part in parts]
                )
            return cls(np.concatenate([part.data for part in parts]), absent)
        return cls.of([item for part in parts for item in part.items(MISSING)])


@dataclass(frozen=True, eq=False)
class Block:
    """What is known of m samples.

    Attributes:
        ids: uint8 [m, 12]: their `_id`s.
        datasets: Names of datasets.
        dataset: uint16 [m]: the index of each sample's dataset in `datasets`.
        values: Index fields, by name; `tags` and `provenance` among them.
        refs: Where the blobs are, by field.
    """

    ids: NDArray[np.uint8]
    datasets: tuple[str, ...]
    dataset: NDArray[np.uint16]
    values: Mapping[str, Values] = field(default_factory=dict)
    refs: Mapping[str, BlobRefs] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[Any]) -> Block:
        """The samples at those rows, or of a mask."""
        return Block(
            self.ids[rows],
            self.datasets,
            self.dataset[rows],
            {name: values.take(rows) for name, values in self.values.items()},
            {name: plain_refs(refs.take(rows)) for name, refs in self.refs.items()},
        )

    def id(self, row: int) -> ObjectId:
        """The `_id` of the sample in a row."""
        return ObjectId(self.ids[row].tobytes())

    @classmethod
    def joined(cls, parts: Sequence[Block]) -> Block:
        """The samples of several parts, one after the other. All parts must have the same columns."""
        if len(parts) == 1:
            return parts[0]
        numbers: dict[str, int] = {}
        dataset = [
            np.array([numbers.setdefault(name, len(numbers)) for name in part.datasets], np.uint16)[part.dataset]
            for part in parts
        ]
        return cls(
            np.concatenate([part.ids for part in parts]),
            tuple(numbers),
            np.concatenate(dataset),
            {name: Values.joined([part.values[name] for part in parts]) for name in parts[0].values},
            {name: joined_refs([part.refs[name] for part in parts]) for name in parts[0].refs},
        )


def plain_refs(refs: BlobRefs) -> BlobRefs:
    """The same references, which remember nothing of those from which they were taken."""
    return BlobRefs(refs.segments, refs.segment, refs.offset, refs.length, refs.compressed)


def no_refs(m: int, some: ObjectId | None = None) -> BlobRefs:
    """References of m samples that lack the blob."""
    nothing = np.zeros(m, np.int64)
    return BlobRefs((some or ObjectId(bytes(12)),), nothing.astype(np.uint32), nothing, nothing - 1)
