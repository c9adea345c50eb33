"""Embed: what a model makes of each sample, stored as a field of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tensordb_data.common.html import Report
from tensordb_data.curation.models import called, name_of
from tensordb_data.errors import QueryError, SchemaError
from tensordb_data.query.query import Query
from tensordb_data.samples.existing.annotate_many import annotate_many
from tensordb_data.schema import Array
from tensordb_data.schema.schema import PROVENANCE
from tensordb_data.stream.deliver.stream import Stream
from tensordb_data.stream.plan.sample_table import FieldLayout
from tensordb_data.stream.spec import StreamSpec
from tensordb_data.warehouse.annotation import check_source
from tensordb_data.warehouse.bound_query import BoundQuery

if TYPE_CHECKING:
    from bson import ObjectId

Progress = Callable[[int, int], None]

_SAMPLES, _BYTES, _SECONDS = 8192, 16 << 20, 30.0
"""When what was computed is written: after so many samples, bytes or seconds. A call that is killed has lost it."""


@dataclass(frozen=True)
class Embedded(Report):
    """What `db.data.embed` did."""

    embedded: int
    """Samples that got a vector."""
    there: int
    """Samples that had one of this source before."""
    failed: int
    """Samples that could not be read or transformed, as far as `max_failures` allows."""
    gone: int
    """Samples that were deleted meanwhile."""


def embed(
    bound: BoundQuery,
    model: Any,
    field: str,
    inputs: str | Sequence[str] | None,
    batch_size: int,
    source: str | None,
    replaces: bool,
    options: Mapping[str, Any],
    progress: Progress | None,
) -> Embedded:
    """See `Data.embed`."""
    if bound.query.collection != "data":
        raise QueryError(f"only samples are embedded: db.data.find(...); this is db.{bound.query.collection}")
    bound.check_writable()
    names = _input_names(inputs)
    if field in names:
        raise QueryError(f"field= is where the vectors go, and {field!r} is an input: give another name")
    compute = called(model, names[0] if isinstance(inputs, str) else None)
    source = f"embed:{name_of(model)}" if source is None else source
    check_source(source)
    if bound.query.limit is not None:  # it would select others, once these have their vectors
        ids = [doc["_id"] for doc in bound.cursor({"_id": 1})]
        bound = BoundQuery(bound.warehouse, Query("data", {"_id": {"$in": ids}}))
    total = bound.count()
    by = f"{PROVENANCE}.{field}.source"
    _check_field(bound, field)
    if not replaces:
        _check_source(bound, field, by, source)
    missing = _narrowed(bound, {by: {"$ne": source}})
    left = missing.count()
    spec = StreamSpec(
        missing.query.replace(fields=None, sort=None), batch_size, (*names, "_id") if names else None, passes=1,
        **options,
    )  # fmt: skip
    if not names:
        spec = _with_all_fields(bound, spec, field)
    writer = _Vectors(bound, field, source)
    with closing(Stream(bound.warehouse, spec)) as stream:
        for batch in stream if left else ():
            ids = batch.pop("_id")
            writer.add(ids, _checked(compute(batch), len(ids), field))
            if progress is not None:
                progress(writer.added, left)
        writer.write()
        failed = int(stream.stats()["skipped"])
    return Embedded(writer.changed, total - left, failed, writer.added - writer.changed)


class _Vectors:
    """Vectors that were computed, to be written together."""

    def __init__(self, bound: BoundQuery, field: str, source: str) -> None:
        self._bound, self._field, self._source = bound, field, source
        self.added = self.changed = 0
        self._ids: list[ObjectId] = []
        self._vectors: list[NDArray[Any]] = []
        self._bytes, self._since = 0, time.monotonic()

    def add(self, ids: Sequence[ObjectId], vectors: NDArray[Any]) -> None:
        self._ids += ids
        self._vectors.append(vectors)
        self.added += len(ids)
        self._bytes += vectors.nbytes
        late = time.monotonic() - self._since > _SECONDS
        if len(self._ids) >= _SAMPLES or self._bytes >= _BYTES or late:
            self.write()

    def write(self) -> None:
        if self._ids:
            shapes = sorted({vectors.shape[1:] for vectors in self._vectors})
            if len(shapes) > 1:
                raise QueryError(f"the model gave vectors of different shapes, {shapes}: give one of a fixed shape")
            columns = {self._field: np.concatenate(self._vectors)}
            self.changed += annotate_many(self._bound.warehouse, self._ids, columns, self._source).changed
        self._ids, self._vectors, self._bytes, self._since = [], [], 0, time.monotonic()


def _input_names(inputs: Any) -> tuple[str, ...]:
    if inputs is None:
        return ()
    names = (inputs,) if isinstance(inputs, str) else tuple(inputs) if isinstance(inputs, (list, tuple)) else ()
    if not names or not all(isinstance(name, str) and name for name in names) or "_id" in names:
        raise QueryError(f'inputs= is the name of a field or a list of names, such as "image"; found {inputs!r:.80}')
    return names


def _with_all_fields(bound: BoundQuery, spec: StreamSpec, field: str) -> StreamSpec:
    """The spec with all fields that every sample has."""
    datasets = bound.distinct("dataset")
    schemas = bound.warehouse.datasets.schemas(sorted(datasets))
    names = tuple(name for name in FieldLayout.choose(None, schemas).fields if name != field)
    return replace(spec, fields=(*names, "_id"))


def _narrowed(bound: BoundQuery, condition: Mapping[str, Any]) -> BoundQuery:
    filter = bound.query.filter
    both = {"$and": [filter, condition]} if filter else dict(condition)
    return BoundQuery(bound.warehouse, bound.query.replace(filter=both))


def _check_field(bound: BoundQuery, field: str) -> None:
    """Refuse a field that holds something else, before the model has worked for hours."""
    for dataset, schema in bound.warehouse.datasets.schemas(sorted(bound.distinct("dataset"))).items():
        found = schema.get(field)
        if found is not None and not (isinstance(found, Array) and found.optional):
            raise SchemaError(
                f"dataset {dataset!r}, field {field!r}: expected an optional array or no field of this name, found"
                f" {found!r}; give another field="
            )


def _check_source(bound: BoundQuery, field: str, by: str, source: str) -> None:
    """Refuse to leave vectors of different models beside each other: they cannot be compared."""
    schemas = bound.warehouse.datasets.schemas(sorted(bound.distinct("dataset")))
    if not any(field in schema for schema in schemas.values()):
        return
    there = [{field: {"$exists": True}}, {by: {"$ne": source}}]
    for doc in _narrowed(bound, {"$and": there}).cursor({by: 1}):
        found = doc.get(PROVENANCE, {}).get(field, {}).get("source")
        raise QueryError(
            f"sample {doc['_id']} has {field!r} already, of {found!r}, and not of {source!r}: vectors of two models"
            " cannot be compared. Give another field=, or replace=True"
        )


def _checked(vectors: NDArray[Any], n: int, field: str) -> NDArray[Any]:
    if vectors.ndim < 2 or len(vectors) != n or vectors.dtype.kind not in "fiu":
        raise QueryError(
            f"{field!r}: the model must give an array of numbers of shape ({n}, ...), one vector for each sample; found"
            f" {vectors.dtype} of shape {vectors.shape}"
        )
    return vectors
