"""Compare two frozen sets, or one with the samples of now: which samples came, which went, and which values changed.

Chunks that two sets have in common are not read. Of others, only the columns are read that differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import bson
import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from tensordb_data.common.html import Html, Shown, paragraph, table
from tensordb_data.common.text_table import text_table
from tensordb_data.errors import QueryError
from tensordb_data.frozen.codec import Codec
from tensordb_data.frozen.columns import MISSING, Block, Values, no_refs
from tensordb_data.frozen.frozen_set import codec_of
from tensordb_data.frozen.structure import IDS, VALUE
from tensordb_data.samples.sample import Sample
from tensordb_data.time.blob_content import BlobContents
from tensordb_data.time.ids import matched
from tensordb_data.time.sides import Rows, Side, compared, side_of

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery
    from tensordb_data.warehouse.context import Warehouse

_CHUNK = 256
_SHOWN = 20
_PLAIN = (str, int, float, bool, type(None))


class Change(Mapping[str, tuple[Any, Any]]):
    """One sample whose values have changed: for each field the old value and the new one; None where there is none.

    The values of blobs are read when they are asked for.
    """

    def __init__(self, old: Sample, new: Sample | None, fields: Sequence[str]) -> None:
        self.old, self.new, self._fields = old, new, tuple(fields)

    @property
    def id(self) -> ObjectId:
        """The `_id` of the sample."""
        found: ObjectId = self.old.id
        return found

    def __getitem__(self, field: str) -> tuple[Any, Any]:
        if field not in self._fields:
            raise KeyError(f"{field!r} has not changed; what has: {', '.join(self._fields)}")
        return _value(self.old, field), None if self.new is None else _value(self.new, field)

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{name}=..." if name in self.old.blobs else f"{name}={self[name][0]!r:.40} -> {self[name][1]!r:.40}"
            for name in self._fields
        )
        return f"<Change of {self.id}: {shown}>"


def _value(sample: Sample, field: str) -> Any:
    return sample.get(field)


class Samples(Sequence[Sample]):
    """Samples that only one side has, in its order. They are read when they are iterated."""

    def __init__(self, side: Side, rows: Rows) -> None:
        self._side, self._rows = side, rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def ids(self) -> list[ObjectId]:
        """Their ids."""
        return ids_at(self._side, self._rows)

    def __iter__(self) -> Iterator[Sample]:
        for at in range(0, len(self._rows), _CHUNK):
            yield from (one for one in self._side.samples(self._rows[at : at + _CHUNK]) if one is not None)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [one for one in self._side.samples(self._rows[index]) if one is not None]
        return self._side.samples(self._rows[[index]])[0]

    def __repr__(self) -> str:
        return f"<{len(self):,} samples of {self._side.name}>"


class Changes(Sequence[Change]):
    """The samples whose values have changed, in the order of the new side. They are read when they are iterated."""

    def __init__(self, sides: tuple[Side, Side], rows: tuple[Rows, Rows], fields: Sequence[str], which: Any) -> None:
        self._sides, self._rows, self._names, self._which = sides, rows, list(fields), which

    def __len__(self) -> int:
        return len(self._rows[0])

    @property
    def ids(self) -> list[ObjectId]:
        """Their ids."""
        return ids_at(self._sides[1], self._rows[1])

    @property
    def fields(self) -> dict[str, int]:
        """In how many samples each field has changed; the most frequent first."""
        counts = {name: int(self._which[:, at].sum()) for at, name in enumerate(self._names)}
        return {name: n for name, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if n}

    def __iter__(self) -> Iterator[Change]:
        for at in range(0, len(self), _CHUNK):
            yield from self[at : at + _CHUNK]

    def __getitem__(self, index: Any) -> Any:
        rows = index if isinstance(index, slice) else [index]
        sides = [side.samples(mine[rows]) for side, mine in zip(self._sides, self._rows, strict=True)]
        found = [
            Change(old, new, [self._names[at] for at in np.flatnonzero(which)])
            for old, new, which in zip(*sides, self._which[rows], strict=True)
            if old is not None
        ]
        return found if isinstance(index, slice) else found[0]

    def __repr__(self) -> str:
        return f"<{len(self):,} changed samples: {self.fields}>"


@dataclass(frozen=True, repr=False)
class Diff(Shown):
    """How two states of samples differ. `len()` of each part is known; its samples are read when they are iterated.

    Samples are the same by their `_id`. Values are compared with their types; blobs by their content. Tags count as a
    field. The name of the dataset does not count, and neither does who has annotated a value.
    """

    old: str
    """What was compared, for people."""
    new: str
    added: Samples
    """Samples that only the new side has."""
    removed: Samples
    """Samples that only the old side has."""
    changed: Changes
    """Samples that both have, with other values."""
    same: int
    """How many samples both have with the same values."""

    def __bool__(self) -> bool:
        """Whether they differ."""
        return bool(len(self.added) or len(self.removed) or len(self.changed))

    def _rows(self) -> list[list[Any]]:
        counts = [["added", len(self.added)], ["removed", len(self.removed)], ["changed", len(self.changed)]]
        fields = [[f"  {name}", n] for name, n in list(self.changed.fields.items())[:_SHOWN]]
        return [*counts, *fields, ["same", self.same]]

    def _html(self) -> Html:
        return Html(paragraph(f"{self.old} → {self.new}") + table(["", "samples"], self._rows(), ["samples"]))

    def __repr__(self) -> str:
        head = f"{self.old} -> {self.new}"
        rows = [[name, f"{n:,}"] for name, n in self._rows()]
        return f"{head}\n{text_table(['', 'samples'], rows, ['samples'])}"


def diff(old: BoundQuery, new: BoundQuery) -> Diff:
    """See `Data.diff`."""
    for bound in (old, new):
        if bound.query.collection != "data":
            raise QueryError(f"only samples are compared: db.data.find(...); this is db.{bound.query.collection}")
    return _Comparison(old.warehouse, side_of(old), side_of(new)).diff()


class _Comparison:
    def __init__(self, warehouse: Warehouse, old: Side, new: Side) -> None:
        self._sides = old, new
        self._columns = compared(old, new)
        self._codec = codec_of(warehouse)
        self._contents = BlobContents(warehouse)
        self._found: list[tuple[Rows, Rows, NDArray[np.bool_]]] = []
        names = dict.fromkeys(column.split(" ", 1)[1] for column in self._columns)
        self._fields = {name: at for at, name in enumerate(names)}

    def diff(self) -> Diff:
        """The comparison."""
        old, new = self._sides
        pairs = _pairs(old, new)
        for one, other in pairs.items():
            self._pair(one, other)
        rest = [c for c in range(len(old.starts) - 1) if c not in pairs]
        others = [c for c in range(len(new.starts) - 1) if c not in set(pairs.values())]
        removed, added = self._rest(rest, others)
        rows, later, which = _joined(self._found, len(self._fields))
        order = np.argsort(later, kind="stable")
        changed = Changes(self._sides, (rows[order], later[order]), list(self._fields), which[order])
        same = len(old) - len(removed) - len(changed)
        return Diff(old.name, new.name, Samples(new, added), Samples(old, removed), changed, same)

    def _pair(self, one: int, other: int) -> None:
        """Compare two chunks of the same samples, in the columns that may differ."""
        old, new = self._sides
        columns = [
            name for name in self._columns if (piece := old.piece(name, one)) is None or piece != new.piece(name, other)
        ]
        if columns:
            blocks = old.joined(columns, [one]), new.joined(columns, [other])
            rows = np.arange(len(blocks[0]), dtype=np.int64)
            self._compare(*blocks, rows + old.starts[one], rows + new.starts[other], columns)

    def _rest(self, rest: Sequence[int], others: Sequence[int]) -> tuple[Rows, Rows]:
        """Compare the samples of the other chunks; returns the rows of those that only one side has."""
        old, new = self._sides
        rows, later = _rows_of(old, rest), _rows_of(new, others)
        if not len(rows) or not len(later):
            return rows, later
        blocks = old.joined(self._columns, rest), new.joined(self._columns, others)
        mine, theirs = matched(blocks[0].ids, blocks[1].ids)
        if len(mine):
            self._compare(blocks[0].take(mine), blocks[1].take(theirs), rows[mine], later[theirs], self._columns)
        alone = [np.setdiff1d(np.arange(len(all_)), some) for all_, some in ((rows, mine), (later, theirs))]
        return rows[alone[0]], later[alone[1]]

    def _compare(self, old: Block, new: Block, rows: Rows, later: Rows, columns: Sequence[str]) -> None:
        m = len(old)
        which = np.zeros((m, len(self._fields)), np.bool_)
        for column in columns:
            name = column.split(" ", 1)[1]
            if column.startswith(VALUE):
                nothing = Values.nothing(m)
                mask = values_differ(old.values.get(name, nothing), new.values.get(name, nothing), self._codec)
            else:
                lacking = no_refs(m)
                mask = self._contents.differ(old.refs.get(name, lacking), new.refs.get(name, lacking))
            which[:, self._fields[name]] |= mask
        changed = np.flatnonzero(which.any(axis=1))
        self._found.append((rows[changed], later[changed], which[changed]))


def _pairs(old: Side, new: Side) -> dict[int, int]:
    """Chunks of the same samples in the same order: the one of the new side for each of the old one."""
    known: dict[Any, int] = {}
    for chunk in range(len(old.starts) - 1):
        if (piece := old.piece(IDS, chunk)) is not None:
            known[piece] = chunk
    found: dict[int, int] = {}
    for chunk in range(len(new.starts) - 1):
        piece = new.piece(IDS, chunk)
        if piece is not None and piece in known:
            found.setdefault(known[piece], chunk)
    return found


def values_differ(one: Values, other: Values, codec: Codec) -> NDArray[np.bool_]:
    """Which of m values differ, bool [m]: by value and type, NaN being equal to NaN."""
    if one.data.dtype == other.data.dtype and one.data.dtype != object:
        found: NDArray[np.bool_] = one.data != other.data
        if one.data.dtype.kind == "f":
            found &= ~(np.isnan(one.data) & np.isnan(other.data))
        if one.absent is not None or other.absent is not None:
            nothing = np.zeros(len(found), np.bool_)
            mine = nothing if one.absent is None else one.absent
            theirs = nothing if other.absent is None else other.absent
            found = (found & ~mine & ~theirs) | (mine != theirs)
        return found
    pairs = zip(one.items(MISSING), other.items(MISSING), strict=True)
    return np.fromiter((not is_same(a, b, codec) for a, b in pairs), np.bool_, len(one))


def is_same(one: Any, other: Any, codec: Codec) -> bool:
    """Whether two values are the same, by value and type, NaN being equal to NaN. Either may be MISSING."""
    if one is other:
        return True
    if one is MISSING or other is MISSING:
        return False
    if isinstance(one, _PLAIN) and isinstance(other, _PLAIN):
        kinds = [int if isinstance(v, int) and not isinstance(v, bool) else type(v) for v in (one, other)]
        return kinds[0] is kinds[1] and (one == other or (one != one and other != other))
    if isinstance(one, list) and isinstance(other, list) and all(type(item) is str for item in (*one, *other)):
        return one == other  # tags, mostly
    return bson.encode({"v": one}, codec_options=codec) == bson.encode({"v": other}, codec_options=codec)


def _rows_of(side: Side, chunks: Sequence[int]) -> Rows:
    parts = [np.arange(side.starts[chunk], side.starts[chunk + 1], dtype=np.int64) for chunk in chunks]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _joined(found: Sequence[tuple[Rows, Rows, NDArray[np.bool_]]], fields: int) -> tuple[Rows, Rows, NDArray[np.bool_]]:
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, fields), np.bool_)
    rows, later, which = zip(*found, strict=True)
    return np.concatenate(rows), np.concatenate(later), np.concatenate(which)


def ids_at(side: Side, rows: Rows) -> list[ObjectId]:
    """The `_id`s of the samples in some rows."""
    of = np.searchsorted(side.starts, rows, side="right") - 1
    found: list[Any] = [None] * len(rows)
    for chunk in np.unique(of).tolist():
        (block,) = side.blocks((), [chunk])
        for at in np.flatnonzero(of == chunk).tolist():
            found[at] = block.id(int(rows[at] - side.starts[chunk]))
    return found
