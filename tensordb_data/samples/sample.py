"""One sample: an entity whose large fields are blobs, which are read when they are used."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import pymongo
from bson import ObjectId
from pymongo.errors import PyMongoError

from tensordb_data.blobs.segments.inline import is_inline, read_inline
from tensordb_data.blobs.segments.references import BlobRefs, is_reference, references_of
from tensordb_data.common.html import IMAGE, Html, image
from tensordb_data.errors import (
    CorruptBlobError,
    NotFoundError,
    SampleError,
    SchemaError,
    StorageError,
    TensorDBError,
)
from tensordb_data.frozen.frozen_set import set_by_id
from tensordb_data.samples.pictures.encode import picture
from tensordb_data.schema import Array, BlobField, Field, Image
from tensordb_data.warehouse.record import Record

if TYPE_CHECKING:
    from tensordb_data.blobs.stores.base import Buffer
    from tensordb_data.schema.schema import Schema
    from tensordb_data.warehouse.context import Warehouse

S = TypeVar("S", bound="Sample")

_SECONDS = 1.0  # that a notebook waits for it
_SHOWN = 4 * 2**20  # bytes of a blob of which a notebook shows a picture
_AHEAD = 16 * 2**20  # bytes of blobs of other samples that one access may read with its own


class Sample(Record):
    """One sample: a mapping of its fields, including its blobs.

    The first `sample["image"]` reads and decodes the blob, and keeps it. It also reads this blob of other samples that
    came with this one from the same query and still exist as objects.
    """

    __slots__ = ("_blobs", "_neighbours", "_schema")

    collection = "data"

    def __init__(
        self,
        warehouse: Warehouse,
        doc: Mapping[str, Any],
        schema: Schema,
        neighbours: list[weakref.ref[Sample]],
        blobs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(warehouse, doc)
        self._schema = schema
        self._blobs: dict[str, Any] = {} if blobs is None else blobs
        self._neighbours = neighbours

    @property
    def dataset(self) -> str:
        """The name of the sample's dataset."""
        return str(self._doc["dataset"])

    @property
    def _references(self) -> Mapping[str, Mapping[str, Any]]:
        return references_of(self._doc)

    @property
    def blobs(self) -> dict[str, Field]:
        """The fields of this sample that are blobs, by name. This reads nothing."""
        return {name: self._schema[name] for name in self._references if name in self._schema}

    def stored_bytes(self, name: str) -> int:
        """How many bytes a blob of this sample has in its store; 0 if there is none."""
        reference = self._references.get(name)
        return int(reference["n"]) if is_reference(reference) and reference is not None else 0

    def encoded(self, name: str) -> bytes:
        """The bytes of a blob as they were given, before anything is decoded: of an image, those of its file.

        The compression that a writer has added (`compression="zstd"`) is removed. Text is UTF-8.

        Raises:
            NotFoundError: The sample has no such blob.
            SchemaError: The field is an array, which has no encoded form: `sample[name]` is its value.
            CorruptBlobError: The blob is damaged.
        """
        if name not in self.blobs:
            known = ", ".join(self.blobs) or "none"
            raise NotFoundError(f"sample {self.id} of {self.dataset!r} has no blob {name!r}; its blobs: {known}")
        if isinstance(self._schema[name], Array):
            raise SchemaError(
                f"sample {self.id} of {self.dataset!r}, field {name!r}: expected an image, bytes or text, found"
                f" {self._schema[name]!r}, which has no encoded form; read its value, sample[{name!r}]"
            )
        return bytes(read_stored([self], name)[0] or b"")

    def __getitem__(self, key: str) -> Any:
        if key in self._blobs:
            return self._blobs[key]
        if key in self._references:
            _load(self, key)
            return self._blobs[key]
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[str]:
        yield from super().__iter__()
        yield from self._references

    def copied(self, kind: type[S]) -> S:
        """The same sample as one of another class. It reads its blobs together with those of its neighbours too."""
        found = kind(self._warehouse, self._doc, self._schema, self._neighbours, self._blobs)
        self._neighbours.append(weakref.ref(found))
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return Sample, (self._warehouse, self._doc, self._schema, [], self._blobs)

    def _rows(self) -> Iterator[tuple[str, Any]]:
        blobs = self.blobs
        for name, value in super()._rows():
            yield name, value
            if name in blobs and (shown := self.thumbnail_html(name)) is not None:
                yield "", shown

    def thumbnail_html(self, name: str, size: int = 128) -> Html | None:
        """A small picture of a blob for a notebook; None where it is none, is large, or lies far away."""
        field = self.blobs.get(name)
        if not isinstance(field, (Array, Image)) or self.stored_bytes(name) > _SHOWN or not self._warehouse.blobs.near:
            return None
        try:
            with pymongo.timeout(_SECONDS):
                stored = read_stored([self], name)[0] or b""
            for side in (size, size // 2, size // 4):  # the smaller, the fewer bytes
                media, data, width, height = picture(field, stored, max(8, side), IMAGE)
                if len(data) <= IMAGE:
                    break
        except (TensorDBError, PyMongoError, ValueError, TypeError):
            return None
        return image(media, data, f"{name} {width} x {height}")

    def _shown(self) -> Iterator[tuple[str, Any]]:
        yield from super()._shown()
        for name in self._references:
            yield name, self._schema.get(name, "blob")


def make_samples(warehouse: Warehouse, docs: Sequence[Mapping[str, Any]]) -> list[Sample]:
    """Make samples of a chunk of documents. They load their blobs together."""
    frozen = {id: set_by_id(warehouse, id).schemas for id in {_set_of(doc) for doc in docs} if id is not None}
    living = sorted({doc["dataset"] for doc in docs if _set_of(doc) is None})
    schemas = warehouse.datasets.schemas(living) if living else {}
    neighbours: list[weakref.ref[Sample]] = []
    samples = []
    for doc in docs:
        id = _set_of(doc) if frozen else None
        schema = schemas.get(doc["dataset"]) if id is None else frozen[id].get(doc["dataset"])
        if schema is None:
            raise SampleError(f"sample {doc['_id']} belongs to the dataset {doc['dataset']!r}, which has no schema")
        samples.append(Sample(warehouse, doc, schema, neighbours))
    neighbours += map(weakref.ref, samples)
    return samples


def _set_of(doc: Mapping[str, Any]) -> Any:
    """The `_id` of the frozen set of a document; None of one that is in the index."""
    internals = doc.get("_tdb")
    found = internals.get("f") if isinstance(internals, Mapping) else None
    return found if isinstance(found, ObjectId) else None


def read_stored(samples: Sequence[Sample], name: str) -> list[Buffer | None]:
    """The stored bytes of one blob field of some samples, decompressed; None for each sample that lacks it.

    Raises:
        CorruptBlobError: A blob is damaged, or a reference is none; the message names the sample.
        StorageError: The blob store failed.
    """
    found: list[Buffer | None] = [None] * len(samples)
    rows: list[int] = []
    for row, sample in enumerate(samples):
        if sample._references.get(name) is None:
            continue
        reference = _reference(sample, name)
        if not is_inline(reference):
            rows.append(row)
            continue
        try:
            found[row] = read_inline(reference, getattr(sample._schema.get(name), "fixed_nbytes", None))
        except CorruptBlobError as error:
            raise CorruptBlobError(f"{_place(sample, name)}: {error}") from error
    if rows:
        refs = BlobRefs.from_docs([samples[row]._references[name] for row in rows])
        try:
            buffers = samples[0]._warehouse.blobs.reader.read(refs)
        except StorageError as error:
            at = getattr(error, "row", None)
            where = f"field {name!r}" if at is None else _place(samples[rows[at]], name)
            raise type(error)(f"{where}: {error}") from error
        for row, buffer in zip(rows, buffers, strict=True):
            found[row] = buffer
    for sample, stored in zip(samples, found, strict=True):
        size = getattr(sample._schema.get(name), "fixed_nbytes", None)
        if stored is not None and size is not None and len(stored) != size:
            raise CorruptBlobError(f"{_place(sample, name)}: expected {size} bytes, found {len(stored)}")
    return found


def _place(sample: Sample, name: str) -> str:
    return f"sample {sample.id} of {sample.dataset!r}, field {name!r}"


def _reference(sample: Sample, name: str) -> Any:
    found = sample._references[name]
    if not is_reference(found):
        raise CorruptBlobError(
            f"{_place(sample, name)}: expected a reference to a blob, found something else, as another tool has"
            " written it"
        )
    return found


def _load(sample: Sample, name: str) -> None:
    """Read one blob of a sample, and the same blob of its neighbours, up to `_AHEAD` bytes.

    Raises:
        CorruptBlobError: The blob is damaged, or the sample has no reference to one.
    """
    if is_inline(_reference(sample, name)):
        _decode(sample, name, None)
        return
    nbytes = getattr(sample._schema.get(name), "fixed_nbytes", None)
    batch, budget = [sample], _AHEAD - sample._references[name]["n"]
    for reference in sample._neighbours:
        other = reference()
        if other is None or other is sample or name in other._blobs:
            continue
        if not is_reference(other._references.get(name)) or is_inline(other._references[name]):
            continue
        budget -= other._references[name]["n"]
        if budget < 0:
            break
        batch.append(other)
    try:
        buffers = sample._warehouse.blobs.reader.read(
            BlobRefs.from_docs([one._references[name] for one in batch]), nbytes
        )
    except StorageError:
        if len(batch) == 1:
            raise
        batch = [sample]  # perhaps the blob of a neighbour is damaged, and this one is not
        buffers = sample._warehouse.blobs.reader.read(BlobRefs.from_docs([sample._references[name]]), nbytes)
    for one, buffer in zip(batch, buffers, strict=True):
        try:
            _decode(one, name, buffer)
        except CorruptBlobError:
            if one is sample:
                raise


def _decode(sample: Sample, name: str, buffer: Buffer | None) -> None:
    """Decode a blob: the bytes in `buffer`, or with None those in the document."""
    field = sample._schema.get(name)
    if not isinstance(field, BlobField):
        raise SampleError(f"sample {sample.id}: the schema of {sample.dataset!r} has no blob field {name!r}")
    try:
        if buffer is None:
            buffer = read_inline(sample._references[name], field.fixed_nbytes)
        sample._blobs[name] = field.decode(buffer)
    except CorruptBlobError as error:
        raise CorruptBlobError(f"{_place(sample, name)}: {error}") from error
