"""Read the samples of a query, with the stored bytes of their blobs, a bounded number of bytes at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tensordb_data.common.chunks import batched, runs_by_size
from tensordb_data.errors import QueryError, SchemaError
from tensordb_data.samples.sample import Sample, make_samples, read_stored
from tensordb_data.schema import BlobField, Field, Image, Scalar
from tensordb_data.warehouse.bound_query import BoundQuery, reported

if TYPE_CHECKING:
    from tensordb_data.blobs.stores.base import Buffer
    from tensordb_data.schema.schema import Schema

_CHUNK = 256
_STANDARD = ("_id", "dataset", "tags")
RUN_BYTES = 16 << 20
"""Bytes of blobs that are in memory at a time; a larger blob is alone."""


class Row(NamedTuple):
    """One sample: its entity, and the stored bytes of each blob that was asked for and that it has."""

    sample: Sample
    blobs: dict[str, Buffer]


def check_data(bound: BoundQuery, what: str) -> None:
    """Refuse what is no selection of samples.

    Raises:
        QueryError: It is none.
    """
    if bound.query.collection != "data":
        raise QueryError(f"only samples have {what}: db.data.find(...); this is db.{bound.query.collection}")


def fields_of(bound: BoundQuery, names: Sequence[str] | None = None) -> dict[str, Field]:
    """The fields of the selected datasets.

    Args:
        bound: The query.
        names: Only these; None for those that the query names, or else all.

    Raises:
        QueryError: There is no such field.
        SchemaError: Two datasets have a field of one name and different kinds.
    """
    wanted = bound.query.fields if names is None else names
    return merged_fields(bound.schemas(), wanted)


def merged_fields(schemas: Mapping[str, Schema], wanted: Sequence[str] | None) -> dict[str, Field]:
    """The fields of some datasets; see `fields_of`.

    Args:
        schemas: The schemas, by dataset.
        wanted: Only these fields; None for all.
    """
    found: dict[str, Field] = {}
    others: set[str] = set()
    for dataset, schema in sorted(schemas.items()):
        for name, field in schema.items():
            if wanted is not None and name not in wanted:
                others.add(name)
                continue
            first = found.setdefault(name, field)
            if not _alike(first, field):
                raise SchemaError(
                    f"field {name!r}: expected one kind in all datasets, found {first!r} and, in {dataset!r}, "
                    f"{field!r}; narrow the query to one dataset, or name other fields"
                )
    if wanted is None:
        return found
    if missing := [name for name in wanted if name not in found and name not in _STANDARD]:
        raise QueryError(f"there is no field {missing[0]!r}; the fields are {', '.join(sorted(others | found.keys()))}")
    return {name: found[name] for name in wanted if name in found}


def _alike(first: Field, second: Field) -> bool:
    """Whether the values of both fit into one column. An image is its file, however it is decoded."""
    if isinstance(first, Image) and isinstance(second, Image):
        return True
    return first.to_doc() | {"optional": True} == second.to_doc() | {"optional": True}


def read_rows(bound: BoundQuery, blobs: Sequence[str]) -> Iterator[list[Row]]:
    """The samples in the order of the query, in runs whose blobs fit into `RUN_BYTES`.

    Args:
        bound: The query.
        blobs: The blob fields to read.
    """
    with reported(bound.query), contextlib.closing(bound.cursor()) as cursor:
        for docs in batched(cursor, _CHUNK):
            yield from stored_rows(make_samples(bound.warehouse, docs), blobs)


def stored_rows(samples: Sequence[Sample], blobs: Sequence[str]) -> Iterator[list[Row]]:
    """Some samples with the stored bytes of their blobs, in runs whose blobs fit into `RUN_BYTES`."""
    for low, high in runs_by_size((_nbytes(sample, blobs) for sample in samples), RUN_BYTES):
        some = samples[low:high]
        columns = {name: read_stored(some, name) for name in blobs}
        yield [
            Row(sample, {name: value for name in blobs if (value := columns[name][row]) is not None})
            for row, sample in enumerate(some)
        ]


def _nbytes(sample: Sample, blobs: Sequence[str]) -> int:
    return sum(sample.stored_bytes(name) for name in blobs)


def scalar(row: Row, name: str, field: Scalar) -> Any:
    """The value of an index field, None where there is none.

    Raises:
        SchemaError: Another tool has written a value of another kind.
    """
    value = row.sample.get(name)
    try:
        return None if value is None else field.read(value)
    except SchemaError as error:
        raise SchemaError(f"sample {row.sample.id} of {row.sample.dataset!r}, field {name!r}: {error}") from None


def blob_names(fields: Mapping[str, Field]) -> list[str]:
    """The names of the fields that are blobs."""
    return [name for name, field in fields.items() if isinstance(field, BlobField)]
