"""Blobs that stay where they are: read once, to be checked and to have their digests taken; and files that are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import xxhash

from tensordb_data.blobs.segments.foreign import ForeignBlob
from tensordb_data.errors import SchemaError, StorageError, TensorDBError
from tensordb_data.ingest.engine.verify import CHECKED, damage_in
from tensordb_data.ingest.in_place import InPlace, Range
from tensordb_data.schema import Audio, BlobField, Field, Image, Video, Volume


def has_ranges(values: Any) -> bool:
    """Whether some of a column's values are in files that stay where they are."""
    return isinstance(values, list) and any(isinstance(value, Range) for value in values)


def referring(field: Field, decode: bool) -> Callable[[Any], Any]:
    """What makes a reference of a value of a column.

    Args:
        field: The field that takes it.
        decode: Whether images and other media are decoded, to see if they are damaged.
    """

    def refer(value: Any) -> Any:
        """A `ForeignBlob`; the bytes, where the field stores others; or the error. Other values as they are."""
        if not isinstance(value, Range):
            return value
        try:
            data = value.read()
        except StorageError as error:
            return error
        try:
            same = isinstance(field, BlobField) and field.encode(data) == data
        except SchemaError:
            return data  # whoever encodes the others says what is wrong with it
        if not same:
            return data
        damage = damage_in(data, field) if decode and isinstance(field, CHECKED) else None
        checksum, digest = xxhash.xxh3_64_intdigest(data), xxhash.xxh3_128_digest(data)
        return ForeignBlob(value.file, value.offset, value.length, checksum, digest=digest, damage=damage)

    return refer


def damage_of(data: Any, field: Image | Audio | Video | Volume) -> str | None:
    """What is wrong with an image, sound, video or volume, wherever it is; None if nothing is."""
    return data.damage if isinstance(data, ForeignBlob) else damage_in(bytes(data), field)


def file_values(in_place: InPlace | None) -> Callable[[Any], Any]:
    """What makes a value of the path of a file: its bytes, or with `in_place` the range that it is; or the error."""

    def read(value: Any) -> Any:
        if not isinstance(value, Path):
            return value
        try:
            return value.read_bytes() if in_place is None else in_place.whole(value)
        except TensorDBError as error:
            return error
        except OSError as error:
            return StorageError(f"{value}: {error.strerror or error}")

    return read


def without_errors(values: Sequence[Any], bad: dict[int, str], failed: object) -> list[Any]:
    """Values, with `failed` in place of each error, which is noted in `bad` for its row."""
    found = list(values)
    for row, value in enumerate(found):
        if isinstance(value, TensorDBError):
            bad.setdefault(row, str(value))
            found[row] = failed
    return found
