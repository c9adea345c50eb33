"""Tables of Arrow: what has a schema and record batches, whatever it was read from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from tensordb_data.errors import SchemaError
from tensordb_data.ingest.engine.format1 import old_arrow_keys
from tensordb_data.ingest.in_place import as_it_is
from tensordb_data.ingest.readers.arrow_types import ArrowColumn, pyarrow, values_of
from tensordb_data.ingest.readers.tables import Part
from tensordb_data.ingest.source import CHUNK_BYTES, CHUNK_REFERENCED
from tensordb_data.schema import Field, Scalar

Locate = Callable[[Any], Sequence[Any]]
"""Gives for each value of a column of bytes the `Range` in which it lies; None where it lies in none."""
Batches = Callable[[Sequence[str] | None], Iterator[Any]]
"""Gives record batches with some of the columns; with None, all."""


class ArrowTable:
    """One table.

    A column that Hugging Face has written as class labels gives two: the numbers, and the names, as `class` beside
    `label` and `<name>_class` beside others.

    Args:
        where: The name of the table, for messages.
        schema: Its Arrow schema.
        batches: Gives its record batches, from the start, each time it is called.
        size: Its bytes, for progress.
        rows: How many rows it has; None if that is not known.
        whole: The columns of which it is known that they lack no values.
        old_name: The name of the file in keys of version 0.1; None if that read no such files.
        locate: Says where values lie in the file, if they may stay there.
    """

    def __init__(
        self,
        where: str,
        schema: Any,
        batches: Batches,
        *,
        size: int = 0,
        rows: int | None = None,
        whole: Sequence[str] = (),
        old_name: str | None = None,
        locate: Locate | None = None,
    ) -> None:
        if len(set(schema.names)) < len(schema.names):
            raise SchemaError(f"{where}: expected different names, found {schema.names}")
        self._where, self._schema, self._batches, self._size = where, schema, batches, size
        self._rows, self._whole, self._old_name, self._locate = rows, set(whole), old_name, locate
        self._features = huggingface_features(schema)
        self._classes = {
            name: ("class" if name == "label" else f"{name}_class", feature["names"])
            for name, feature in self._features.items()
            if feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list) and name in schema.names
        }
        self._classes = {name: pair for name, pair in self._classes.items() if pair[0] not in schema.names}

    def fields(self, wanted: Mapping[str, Field]) -> Mapping[str, Field]:
        columns = {
            name: ArrowColumn(name, self._schema.field(name).type, self._features.get(name))
            for name in self._schema.names
        }
        unsure = [name for name, column in columns.items() if name not in self._whole or column.needs_look]
        labels = dict.fromkeys(self._classes, False)
        for batch in self._batches([*dict.fromkeys([*unsure, *self._classes])]) if unsure or self._classes else ():
            for name in batch.schema.names:
                columns[name].look(batch.column(name))
            for name in labels:
                labels[name] = labels[name] or _has_negative(batch.column(name))
        out: dict[str, Field] = {}
        for name, column in columns.items():
            try:
                out[name] = column.field(wanted.get(name))
            except SchemaError as error:
                raise SchemaError(f"{self._where}, {error}") from None
            if name in self._classes:
                new = self._classes[name][0]
                out[new] = wanted.get(new) or Scalar("str", optional=labels[name] or out[name].optional)
        return out

    def parts(self, fields: Mapping[str, Field]) -> Iterator[Part]:
        first, total = 0, self._rows
        for batch in self._batches(None):
            for some in _cut(batch, CHUNK_BYTES if self._locate is None else CHUNK_REFERENCED):
                try:
                    columns = {
                        name: self._values(name, some.column(name), fields[name], first) for name in some.schema.names
                    }
                except SchemaError as error:
                    raise SchemaError(f"{self._where}, {error}") from None
                for name, (new, names) in self._classes.items():
                    columns[new] = [_class(names, value) for value in some.column(name).to_pylist()]
                nbytes = self._size * some.num_rows // max(1, total) if total is not None else some.nbytes
                old = None if self._old_name is None else partial(old_arrow_keys, self._old_name, first, some)
                yield Part(columns, some.num_rows, nbytes, old)
                first += some.num_rows

    def _values(self, name: str, column: Any, field: Field, first: int) -> Any:
        if self._locate is None or not as_it_is(field):
            return values_of(name, column, field, first)
        places = self._locate(column)
        if None not in places:
            return places
        values = values_of(name, column, field, first)
        return [value if place is None else place for place, value in zip(places, values, strict=True)]


def huggingface_features(schema: Any) -> dict[str, Mapping[str, Any]]:
    """What Hugging Face says of the columns in the metadata of a schema."""
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(text)["info"]["features"] if text else {}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    if not isinstance(features, Mapping):
        return {}
    return {name: feature for name, feature in features.items() if isinstance(feature, Mapping)}


def _cut(batch: Any, most: int) -> Iterator[Any]:
    """A batch in parts of at most so many bytes, and as few rows as a commit should have."""
    rows = max(1, min(4096, int(batch.num_rows * most / max(1, batch.nbytes))))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def _has_negative(column: Any) -> bool:
    least = pyarrow().compute.min(column).as_py() if len(column) > column.null_count else None
    return least is not None and least < 0


def _class(names: Sequence[Any], value: Any) -> str | None:
    """The name of a class; None for no label, which Hugging Face writes as -1."""
    return str(names[value]) if isinstance(value, int) and 0 <= value < len(names) else None
