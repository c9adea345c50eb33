"""Samples that wait for a commit, as columns, and their documents: one by one, or encoded together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from bson import ObjectId
from bson.raw_bson import RawBSONDocument

from tensordb_data.samples.encode import pieces
from tensordb_data.samples.encode.pieces import LARGEST_INT, Piece, Table
from tensordb_data.samples.encode.references import References
from tensordb_data.schema import BlobField, Scalar
from tensordb_data.schema.schema import Schema

Row = tuple[Any, ...]
"""One sample: its `_id`, its tags, and what each field of the schema has: a value or None, or the place of a blob."""
FEW = 16
"""Samples that are not worth a table."""
_COLUMNS: dict[str, Callable[[str, Sequence[Any]], list[Piece]]] = {
    "int": pieces.integers,
    "float": pieces.floats,
    "bool": pieces.bools,
    "str": pieces.texts,
}


def number(docs: Iterable[Mapping[str, Any]], first: int) -> None:
    """Give documents consecutive sequence numbers, from the first one on."""
    for sequence, doc in enumerate(docs, first):
        doc["_tdb"]["s"] = sequence


class SampleRows:
    """Samples of one schema, whose values were encoded: a list for each field, with None where one has no value.

    Args:
        project: Their project.
        dataset: Their dataset.
        schema: The schema.
        segment: The segment of their blobs.
    """

    def __init__(self, project: str, dataset: str, schema: Schema, segment: ObjectId) -> None:
        self._project, self._dataset = project, dataset
        self.schema = schema
        self.ids: list[ObjectId] = []
        self.tags: list[list[str]] = []
        self.scalars: dict[str, list[Any]] = {}
        self.blobs: dict[str, References] = {}
        self._kept: list[Row] = []
        self._kinds: dict[str, str] = {}
        for name, field in schema.items():
            if isinstance(field, BlobField):
                self.blobs[name] = References(name, segment)
            else:
                self.scalars[name] = []
                self._kinds[name] = field.kind if isinstance(field, Scalar) else "json"
        self._encoded: list[Piece] | None = None
        self._numbers: Table = np.empty((0, 4), np.uint8)

    def __len__(self) -> int:
        return len(self.ids) + len(self._kept)

    def keep(self, row: Row) -> None:
        """Keep one sample behind the others as it is, until `settle`. It is in, or not, whatever interrupts this."""
        self._kept.append(row)

    def settle(self) -> SampleRows:
        """Turn what was kept into columns.

        Returns:
            These rows.
        """
        if self._kept:
            ids, tags, *columns = zip(*self._kept, strict=True)
            for (name, field), values in zip(self.schema.items(), columns, strict=True):
                if isinstance(field, BlobField):
                    self.blobs[name].add(values)
                else:
                    self.scalars[name] += values
            self.tags += tags
            self.ids += ids
            self._kept = []
        return self

    def extend(self, other: SampleRows) -> None:
        """Add samples of the same schema."""
        for name, values in other.scalars.items():
            self.scalars[name] += values
        for name, references in other.blobs.items():
            self.blobs[name].extend(references)
        self.tags += other.tags
        self.ids += other.ids

    def documents(self) -> Iterator[dict[str, Any]]:
        """The documents, one by one, without sequence numbers."""
        columns = list(self.scalars.items())
        for row, (id, tags) in enumerate(zip(self.ids, self.tags, strict=True)):
            doc: dict[str, Any] = {"_id": id, "dataset": self._dataset, "tags": tags}
            for name, values in columns:
                if (value := values[row]) is not None:
                    doc[name] = value
            doc["_tdb"] = {"p": self._project, "s": 0}
            if blobs := self.references(row):
                doc["_tdb"]["b"] = blobs
            yield doc

    def references(self, row: int) -> dict[str, dict[str, Any]]:
        """The references of one sample, by field."""
        return {name: part for name, column in self.blobs.items() if (part := column[row]) is not None}

    def encode(self) -> bytes:
        """The documents in BSON, one after the other, with 0 for their sequence numbers."""
        found = self._pieces()
        self._numbers[:] = 0
        return pieces.concatenated(found, len(self))

    def numbered(self, first: int) -> list[Mapping[str, Any]]:
        """The documents with consecutive sequence numbers, to be inserted.

        Args:
            first: That of the first.
        """
        n = len(self)
        if n < FEW or first + n - 1 > LARGEST_INT:
            docs = list(self.documents())
            number(docs, first)
            return list(docs)
        found = self._pieces()
        self._numbers[:] = pieces.table(np.arange(first, first + n), "<i4")
        return [RawBSONDocument(raw) for raw in pieces.joined(found, n)]

    def groups(self) -> dict[tuple[str, tuple[str, ...]], ObjectId]:
        """For each set of tags, with the dataset, one sample that has it."""
        if self._same_tags():
            return {(self._dataset, tuple(self.tags[0])): self.ids[-1]} if self.ids else {}
        return {(self._dataset, tags): id for tags, id in zip(map(tuple, self.tags), self.ids, strict=True)}

    def texts(self) -> dict[tuple[str, str, str], ObjectId]:
        """For each text of a field, with dataset and field, one sample that has it."""
        out: dict[tuple[str, str, str], ObjectId] = {}
        for name, values in self.scalars.items():
            if self._kinds[name] == "str":
                found: dict[Any, ObjectId] = dict(zip(values, self.ids, strict=True))
            elif self._kinds[name] == "json":
                found = {value: id for value, id in zip(values, self.ids, strict=True) if type(value) is str}
            else:
                continue
            out.update(((self._dataset, name, text), id) for text, id in found.items() if text is not None)
        return out

    # In BSON

    def _pieces(self) -> list[Piece]:
        """The documents, with their sequence numbers in the table `_numbers`."""
        if self._encoded is None:
            n = len(self)
            self._numbers = pieces.table(np.zeros(n, np.int64), "<i4")
            fields = [*pieces.ids("_id", self.ids), pieces.element("dataset", self._dataset), *self._encode_tags()]
            for name, values in self.scalars.items():
                fields += self._encode_scalars(name, values)
            internals = [pieces.element("p", self._project), *pieces.numbers("s", self._numbers)]
            internals += self._encode_references()
            self._encoded = pieces.whole([*fields, *pieces.document("_tdb", internals, n)], n)
        return self._encoded

    def _encode_tags(self) -> list[Piece]:
        if self._same_tags():
            return [pieces.element("tags", self.tags[0])]
        made: dict[tuple[str, ...], bytes] = {}
        out = []
        for tags in self.tags:
            key = tuple(tags)
            found = made.get(key)
            if found is None:
                found = made[key] = pieces.element("tags", tags)
            out.append(found)
        return [out]

    def _same_tags(self) -> bool:
        return bool(self.tags) and self.tags.count(self.tags[0]) == len(self.tags)

    def _encode_scalars(self, name: str, values: list[Any]) -> list[Piece]:
        """A field in the index. One that is not in every document is encoded for those that have it."""
        encode = _COLUMNS.get(self._kinds[name])
        if encode is None:
            return [pieces.elements(name, values)]
        if None not in values:
            return encode(name, values)
        rows = [row for row, value in enumerate(values) if value is not None]
        if not rows:
            return []
        return [pieces.scattered(len(values), [(np.array(rows), encode(name, [values[row] for row in rows]))])]

    def _encode_references(self) -> list[Piece]:
        """The references. A sample that has none has no field for them."""
        n = len(self)
        if not self.blobs:
            return []
        some = np.any([column.present() for column in self.blobs.values()], axis=0)
        inner = pieces.document("b", [piece for column in self.blobs.values() for piece in column.encode()], n)
        if some.all():
            return inner
        return [[data if has else b"" for data, has in zip(pieces.joined(inner, n), some.tolist(), strict=True)]]
