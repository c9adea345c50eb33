"""A small picture of each sample."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tensordb_data.common.chunks import batched, runs_by_size
from tensordb_data.errors import CorruptBlobError, MissingExtraError, QueryError, SchemaError, StorageError
from tensordb_data.samples.pictures.encode import picture
from tensordb_data.samples.sample import Sample, make_samples, read_stored
from tensordb_data.schema import Array, Image
from tensordb_data.table.bounded import count_number
from tensordb_data.table.fields import schema_fields
from tensordb_data.warehouse.bound_query import BoundQuery, reported

if TYPE_CHECKING:
    from bson import ObjectId

_CHUNK = 256
_RUN = 16 << 20  # bytes of blobs in memory at a time
_LARGEST = 64 << 20  # bytes of one, as it is stored
_SIZES = (8, 1024)


@dataclass(frozen=True)
class Thumbnail:
    """A small picture of one sample."""

    id: ObjectId
    """The `_id` of the sample."""
    media: str
    """`"image/png"` or `"image/jpeg"`."""
    data: bytes
    """The encoded picture; empty if there is an error."""
    width: int
    height: int
    error: str | None = None
    """Why it cannot be shown."""


def thumbnails(bound: BoundQuery, field: str, size: int) -> list[Thumbnail]:
    """See `Selection.thumbnails`."""
    if bound.query.collection != "data":
        raise QueryError(f"only samples have thumbnails: db.data.find(...); this is db.{bound.query.collection}")
    if count_number(size, "thumbnails: size") not in range(_SIZES[0], _SIZES[1] + 1):
        raise QueryError(f"thumbnails: size is a number of pixels from {_SIZES[0]} to {_SIZES[1]}; found {size}")
    kinds = schema_fields(bound).get(field, {}) if isinstance(field, str) else {}
    if not any(isinstance(kind, (Array, Image)) for kind in kinds.values()):
        found = ", ".join(map(repr, kinds.values())) or "no such field"
        raise QueryError(f"thumbnails: {field!r} is an image or an array; found {found}")
    read = bound.replaced(bound.query.replace(fields=[field]))
    out: list[Thumbnail] = []
    with reported(bound.query), contextlib.closing(read.cursor()) as cursor:
        for docs in batched(cursor, _CHUNK):
            out += thumbnails_of(make_samples(bound.warehouse, docs), field, size)
    return out


def thumbnails_of(samples: Sequence[Sample], field: str, size: int) -> list[Thumbnail]:
    """A picture of each of some samples that have a field."""
    there = [sample for sample in samples if isinstance(sample.blobs.get(field), (Array, Image))]
    found: list[Thumbnail] = []
    for low, high in runs_by_size((sample.stored_bytes(field) for sample in there), _RUN):
        found += _run(there[low:high], field, size)
    return found


def _run(samples: Sequence[Sample], field: str, size: int) -> Iterator[Thumbnail]:
    small = [sample for sample in samples if sample.stored_bytes(field) <= _LARGEST]
    stored = dict(zip((sample.id for sample in small), _read(small, field), strict=True))
    for sample in samples:
        if sample.id not in stored:
            yield _failed(sample, f"it has {sample.stored_bytes(field):,} bytes, too many for a thumbnail")
            continue
        data = stored[sample.id]
        if isinstance(data, Exception):
            yield _failed(sample, str(data))
            continue
        try:
            yield Thumbnail(sample.id, *picture(sample.blobs[field], data, size))
        except MissingExtraError:
            raise
        except (ValueError, TypeError, CorruptBlobError, SchemaError) as error:
            yield _failed(sample, str(error))


def _read(samples: Sequence[Sample], field: str) -> list[Any]:
    """The stored bytes of each sample, or what is wrong with them."""
    if not samples:
        return []
    try:
        return list(read_stored(samples, field))
    except StorageError as error:
        if len(samples) == 1:
            return [error]
    found: list[Any] = []
    for sample in samples:  # perhaps one of them is damaged, and the others are not
        try:
            found += read_stored([sample], field)
        except StorageError as error:
            found.append(error)
    return found


def _failed(sample: Sample, why: str) -> Thumbnail:
    return Thumbnail(sample.id, "image/png", b"", 0, 0, why)
