"""Divide a selection into partitions, all of one state of the data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import bson
import numpy as np

from tensordb_data.blobs.segments.references import is_reference, references_of
from tensordb_data.common.chunks import batched
from tensordb_data.common.sizes import parse_size
from tensordb_data.errors import QueryError
from tensordb_data.export.partition import DataState, Doc, Partition, packed, split_rows, unpacked
from tensordb_data.export.portable import PortableAddress
from tensordb_data.export.rows import check_data
from tensordb_data.stream.passes.frozen_reader import plan_reader
from tensordb_data.stream.plan.index_reader import bounded
from tensordb_data.stream.plan.index_snapshot import IndexSnapshot
from tensordb_data.stream.plan.sample_table import FieldLayout
from tensordb_data.stream.spec import StreamSpec, field_names
from tensordb_data.warehouse.bound_query import BoundQuery, reported

_CHUNK = 4096
_MOST = 1_000_000

Block = tuple[bytes, list[int]]
"""Some documents, compressed, and the bytes that each of the samples has."""


def partitions(
    bound: BoundQuery, n: int | None, nbytes: int | str, fields: Sequence[str] | None, *, least: int = 1
) -> list[Partition]:
    """See `Selection.partitions`. Without `n`, there are at least `least`, as far as there are samples."""
    check_data(bound, "partitions")
    if n is not None and (isinstance(n, bool) or not isinstance(n, (int, np.integer)) or not 1 <= n <= _MOST):
        raise QueryError(f"partitions: n is a whole number from 1 to {_MOST:,}, or None; found {n!r:.100}")
    each = parse_size(nbytes, "partitions: nbytes")
    address = PortableAddress.of(bound.warehouse)
    names = field_names(fields if fields is not None else bound.query.fields)
    reader = plan_reader(bound.warehouse, StreamSpec(bound.query, 1, names))

    def read(now: IndexSnapshot, layout: FieldLayout) -> tuple[DataState, list[Block]]:
        every = dict.fromkeys(name for schema in layout.schemas.values() for name in schema)
        wanted = FieldLayout(tuple(every) if names is None else layout.fields, layout.schemas)
        schemas = bson.encode({name: schema.to_doc() for name, schema in layout.schemas.items()})
        state = DataState(
            address, layout.fields if names is not None else (*layout.fields, "_id"), names,
            tuple(sorted((name, now.versions[name]) for name in layout.schemas)), schemas, bound.query.frozen,
        )  # fmt: skip
        return state, list(_blocks(bound, wanted, now))

    state, blocks = reader.read_now(read)
    sizes = [size for _, some in blocks for size in some]
    if n is None:
        n = min(_MOST, max(1, min(len(sizes), max(least, -(-sum(sizes) // each)))))
    return list(_divided(state, blocks, sizes, int(n)))


def _blocks(bound: BoundQuery, wanted: FieldLayout, now: IndexSnapshot) -> Iterator[Block]:
    projection = {**wanted.projection(inline=False), "tags": 1, "_tdb.p": 1}
    known = None if bound.query.frozen else bounded({name: now.versions[name] for name in wanted.schemas})
    with reported(bound.query), contextlib.closing(bound.cursor(projection, known, now.session)) as cursor:
        for docs in batched(cursor, _CHUNK):
            rows = [bson.encode(doc) for doc in docs]
            sizes = [len(row) + _blob_bytes(doc) for row, doc in zip(rows, docs, strict=True)]
            yield packed(rows), sizes


def _blob_bytes(doc: Doc) -> int:
    return sum(part["n"] for part in references_of(doc).values() if is_reference(part))


def _divided(state: DataState, blocks: Sequence[Block], sizes: Sequence[int], n: int) -> Iterator[Partition]:
    rows = (row for block, _ in blocks for row in split_rows(unpacked(block)))
    for number in range(n):
        low, high = number * len(sizes) // n, (number + 1) * len(sizes) // n
        mine = [next(rows) for _ in range(low, high)]
        yield Partition(number, n, high - low, sum(sizes[low:high]), state, packed(mine))
