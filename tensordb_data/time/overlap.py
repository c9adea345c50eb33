"""Which samples two Selections share: the same ones, and others of the same content, or of nearly the same vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import bson
import numpy as np
import xxhash
from bson import ObjectId
from numpy.typing import NDArray

from tensordb_data.common.html import Html, Shown, paragraph, table
from tensordb_data.common.text_table import text_table
from tensordb_data.errors import QueryError
from tensordb_data.frozen.codec import Codec
from tensordb_data.frozen.columns import MISSING, PROVENANCE, TAGS, Block
from tensordb_data.frozen.frozen_set import codec_of
from tensordb_data.frozen.structure import BLOB, VALUE
from tensordb_data.table.neighbours.near import NearPairs, near_pairs
from tensordb_data.time.blob_content import BlobContents
from tensordb_data.time.ids import as_ids, in_order, matched
from tensordb_data.time.sides import Side, side_of

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery

_WIDTH = 12
ABOVE = 0.99
"""The least cosine of vectors that are near, unless another one is given."""


@dataclass(frozen=True, repr=False)
class Overlap(Shown):
    """The samples that two Selections share."""

    one: str
    """What was compared, for people."""
    other: str
    by_id: tuple[ObjectId, ...]
    """The samples that are in both."""
    by_content: tuple[tuple[ObjectId, ObjectId], ...]
    """For each sample of the second that equals a different one of the first in content: the first such one, and it."""
    fields: tuple[str, ...]
    """The fields that were compared for it."""
    near: NearPairs | None = None
    """Pairs of different samples whose embeddings are near, the nearest first; None if no embedding was named."""

    def __bool__(self) -> bool:
        """Whether they share anything."""
        return bool(self.by_id or self.by_content or self.near)

    def _rows(self) -> list[list[Any]]:
        rows = [["the same sample", len(self.by_id)], [f"the same {', '.join(self.fields)}", len(self.by_content)]]
        if (near := self.near) is not None:
            rows.append([f"pairs with a near {near.field}, {near.above:g} or more", len(near)])
            for name, left_out in zip((self.one, self.other), near.left_out, strict=True):
                for why, count in (("no", left_out.missing), ("a zero", left_out.zero), ("a NaN in", left_out.nan)):
                    if count:
                        rows.append([f"not compared, {why} {near.field}: of {name}", count])
        return rows

    def _html(self) -> Html:
        return Html(paragraph(f"{self.one} and {self.other}") + table(["", "samples"], self._rows(), ["samples"]))

    def __repr__(self) -> str:
        rows = [[name, f"{n:,}"] for name, n in self._rows()]
        return f"{self.one} and {self.other}\n{text_table(['', 'samples'], rows, ['samples'])}"


def overlap(
    one: BoundQuery, other: BoundQuery, fields: Sequence[str] | None, embedding: str | None, above: float | None
) -> Overlap:
    """See `Data.overlap`."""
    if embedding is None and above is not None:
        raise QueryError("overlap: above is of an embedding, whose field is to be named: embedding=")
    found = _same(one, other, fields)
    if embedding is None:
        return found
    return replace(found, near=near_pairs(one, other, embedding, ABOVE if above is None else above))


def _same(one: BoundQuery, other: BoundQuery, fields: Sequence[str] | None) -> Overlap:
    for bound in (one, other):
        if bound.query.collection != "data":
            raise QueryError(f"only samples overlap: db.data.find(...); this is db.{bound.query.collection}")
    sides = side_of(one), side_of(other)
    names = _fields(sides, fields)
    if not len(sides[0]) or not len(sides[1]):
        return Overlap(sides[0].name, sides[1].name, (), (), tuple(name.split(" ", 1)[1] for name in names))
    contents, codec = BlobContents(one.warehouse), codec_of(one.warehouse)
    blocks = [side.joined(names, range(len(side.starts) - 1)) for side in sides]
    mine, _ = matched(blocks[0].ids, blocks[1].ids)
    keys = [_content(block, names, contents, codec) for block in blocks]
    pairs = _pairs(keys[0], keys[1])
    ids = as_ids(blocks[0].ids), as_ids(blocks[1].ids)
    found = tuple((ids[0][a], ids[1][b]) for a, b in pairs if ids[0][a] != ids[1][b])
    shown = tuple(name.split(" ", 1)[1] for name in names)
    return Overlap(sides[0].name, sides[1].name, tuple(ids[0][row] for row in sorted(mine.tolist())), found, shown)


def _fields(sides: tuple[Side, Side], fields: Sequence[str] | None) -> list[str]:
    both = sides[0].columns & sides[1].columns
    if fields is not None:
        if isinstance(fields, str) or not all(isinstance(name, str) for name in fields) or not fields:
            raise QueryError(f'overlap takes a list of fields, such as ["image"]; found {fields!r:.200}')
        names = []
        for name in fields:
            found = [column for column in (BLOB + name, VALUE + name) if column in both]
            if not found and len(sides[0]) and len(sides[1]):
                raise QueryError(f"overlap: there is no field {name!r} on both sides")
            names += found
        return names
    blobs = sorted(name for name in both if name.startswith(BLOB))
    return blobs or sorted(name for name in both - {VALUE + TAGS, VALUE + PROVENANCE})


def _content(block: Block, names: Sequence[str], contents: BlobContents, codec: Codec) -> NDArray[np.uint8]:
    """A digest of the content of each sample: uint8 [n, 12]. Samples that have none of the fields get a zero one."""
    n = len(block)
    parts: list[NDArray[np.uint64]] = []
    present = np.zeros(n, np.bool_)
    for name in names:
        field = name.split(" ", 1)[1]
        if name.startswith(BLOB):
            refs = block.refs[field]
            there = refs.length >= 0
            sums = np.zeros(n, np.uint64)
            rows = np.flatnonzero(there)
            sums[rows] = contents.checksums(refs, rows)
            parts += [sums, refs.length.astype(np.int64).view(np.uint64)]
        else:
            items = block.values[field].items(MISSING)
            there = np.fromiter((item is not MISSING for item in items), np.bool_, n)
            encoded = (0 if v is MISSING else xxhash.xxh3_64_intdigest(_encoded(v, codec)) for v in items)
            parts.append(np.fromiter(encoded, np.uint64, n))
        present |= there
    table_ = np.stack(parts, axis=1).astype("<u8") if parts else np.zeros((n, 1), "<u8")
    rows_ = table_.view(np.uint8).reshape(n, -1)
    digests = b"".join([xxhash.xxh3_128_digest(row.tobytes())[:_WIDTH] for row in rows_])
    found: NDArray[np.uint8] = np.frombuffer(digests, np.uint8).reshape(n, _WIDTH).copy()
    found[~present] = 0
    return found


def _encoded(value: Any, codec: Codec) -> bytes:
    return bson.encode({"v": value}, codec_options=codec)


def _pairs(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """For each row of the second, the first row of the first with an equal digest."""
    keys = {}
    for row in in_order(one)[::-1].tolist():
        keys[one[row].tobytes()] = row
    nothing = bytes(_WIDTH)
    found = []
    for row in range(len(other)):
        key = other[row].tobytes()
        if key != nothing and key in keys:
            found.append((keys[key], row))
    return found
