"""How large the documents of samples are, so that one that the index cannot hold is refused as it is added."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import bson
import bson.errors

from tensordb_data.common.bson_values import MAX_DOCUMENT
from tensordb_data.errors import SchemaError
from tensordb_data.schema import Scalar
from tensordb_data.schema.schema import Schema

if TYPE_CHECKING:
    from tensordb_data.samples.columns import Column

_SLACK = 64 * 1024  # what the sequence and later tags may add to a document
_LARGEST = MAX_DOCUMENT - _SLACK
_PLAIN = 150  # ids, sequence and the like
_EACH = 40  # of a field: a reference, say


class Measures:
    """Measures the samples of a dataset. What is no text has about the same size in each of them.

    Args:
        dataset: The dataset.
        schema: Its schema.
    """

    def __init__(self, dataset: str, schema: Schema) -> None:
        self._dataset = dataset
        kinds = {name: field.kind for name, field in schema.items() if isinstance(field, Scalar)}
        self._texts = [name for name, kind in kinds.items() if kind == "str"]
        self._nested = [name for name, kind in kinds.items() if kind == "json"]
        self._plain = _PLAIN + len(dataset.encode()) + sum(_EACH + len(name.encode()) for name in schema)

    def one(self, tags: Sequence[str], values: Mapping[str, Any]) -> int:
        """The bytes of one sample, or a little more.

        Args:
            tags: Its tags.
            values: Its encoded values, by field.

        Raises:
            SchemaError: The index cannot hold it.
        """
        size = self._plain
        for tag in tags:
            size += len(tag.encode()) + 12
        for name in self._texts:
            if (text := values.get(name)) is not None:
                size += len(text.encode())
        for name in self._nested:
            if (value := values.get(name)) is not None:
                size += self._encoded({name: value})
        if size > _LARGEST:
            self._check(tags, values)
        return size

    def many(self, tags: Sequence[Sequence[str]], columns: Mapping[str, Column]) -> int:
        """The bytes of samples in columns, of which each has values of its own in the index; see `one`."""
        varying = {name: column for name, column in columns.items() if column.varies}
        of_tags = sum(map(len, chain.from_iterable(tags)))
        total, largest = self._plain * len(tags) + of_tags, self._plain + 4 * of_tags
        for name, column in varying.items():
            sizes = self._sizes(name, column.values)
            total += sum(sizes)
            largest += max(sizes, default=0)
        if largest > _LARGEST:
            for row, of_sample in enumerate(tags):
                self._check(of_sample, {name: column.values[row] for name, column in columns.items()})
        return total

    def _sizes(self, name: str, values: Iterable[Any]) -> list[int]:
        if name in self._texts:
            return [0 if text is None else len(text) if text.isascii() else len(text.encode()) for text in values]
        return [0 if value is None else self._encoded({name: value}) for value in values]

    def _encoded(self, doc: Mapping[str, Any]) -> int:
        try:
            return len(bson.encode(doc))
        except (bson.errors.InvalidDocument, bson.errors.InvalidStringData, OverflowError) as error:
            raise SchemaError(
                f"dataset {self._dataset!r}: this sample cannot be stored in the index: {error}"
            ) from None

    def _check(self, tags: Sequence[str], values: Mapping[str, Any]) -> None:
        scalars = {*self._texts, *self._nested}
        doc = {"tags": list(tags), **{name: value for name, value in values.items() if name in scalars}}
        size = self._plain + self._encoded(doc)
        if size > _LARGEST:
            name, bytes_ = max(((name, self._encoded({name: value})) for name, value in doc.items()),
                               key=lambda pair: pair[1])  # fmt: skip
            raise SchemaError(
                f"dataset {self._dataset!r}, field {name!r}: expected at most 16 MB a sample in the index, found "
                f"{size / 2**20:.1f} MB, {bytes_ / 2**20:.1f} of them in this field; store it as a blob: declare it as "
                "Text(), Bytes() or Array(...) in schema="
            )
