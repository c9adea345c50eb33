"""The structure of a frozen set: which chunks it has, and which piece holds which column of a chunk. It is JSON.

    {"format": 1, "set": {the document's fields}, "schemas": {dataset: schema}, "versions": {dataset: [seq, mut]},
     "rows": [rows of each chunk], "columns": {"ids": [digest of a piece, or "=" and a small piece itself, …], …}}

A chunk has no piece of a column (null) where none of its samples has a value. A column `holes` says which rows of a
chunk were blanked: they are of no sample any more.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import xxhash
from bson import json_util

from tensordb_data.errors import CorruptBlobError, SchemaError, StorageError
from tensordb_data.schema.schema import Schema

STRUCTURE = "frozen.json"
"""Name of the tensor that holds the structure."""
FOLDER = "frozen"
"""The folder of the objects of frozen sets in a store."""
FORMAT = 1
IDS, DATASET, HOLES = "ids", "dataset", "holes"
VALUE, BLOB = "value ", "blob "
"""What the names of columns of fields begin with."""

SMALL = 300
"""Bytes up to which a piece is in the structure itself."""
MOST_ROWS = 1 << 18
"""Rows that a chunk has at most."""

_JSON = json_util.CANONICAL_JSON_OPTIONS.with_options(tz_aware=True)
_DIGEST = 16

Piece = bytes | str | None
"""A digest, or a small piece itself (as `=` and base64), or nothing."""


@dataclass(frozen=True)
class Structure:
    """What a frozen set consists of."""

    schemas: Mapping[str, Schema]
    versions: Mapping[str, tuple[int, int]]
    """Sequence number and mutation counter of each dataset, when it was frozen."""
    rows: Sequence[int]
    columns: Mapping[str, Sequence[Piece]]
    """The pieces of each column, one for each chunk."""
    holes: int = 0
    """How many rows were blanked."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """The fields of the document of the set, without `_tdb`."""

    @property
    def count(self) -> int:
        """How many samples there are."""
        return sum(self.rows) - self.holes

    @property
    def contents(self) -> list[bytes]:
        """The digests of the pieces that are stored, each once."""
        found = (piece for pieces in self.columns.values() for piece in pieces if isinstance(piece, bytes))
        return list(dict.fromkeys(found))

    @property
    def fingerprint(self) -> str:
        """A digest of samples, values and places of blobs, of 32 hexadecimal digits. Equal ones are of equal sets."""
        said = [
            FORMAT, {name: schema.to_doc() for name, schema in sorted(self.schemas.items())}, list(self.rows),
            {name: list(map(_said, pieces)) for name, pieces in sorted(self.columns.items())},
        ]  # fmt: skip
        return xxhash.xxh3_128_hexdigest(json.dumps(said, sort_keys=True).encode())

    def to_json(self) -> bytes:
        """The bytes of the structure."""
        about = json.loads(json_util.dumps(self.set, json_options=_JSON))
        return json.dumps(
            {
                "format": FORMAT, "set": about, "holes": self.holes,
                "schemas": {name: schema.to_doc() for name, schema in self.schemas.items()},
                "versions": {name: list(pair) for name, pair in self.versions.items()},
                "rows": list(self.rows),
                "columns": {name: list(map(_said, pieces)) for name, pieces in self.columns.items()},
            },
            separators=(",", ":"),
        ).encode()  # fmt: skip

    @classmethod
    def from_json(cls, data: bytes, label: str) -> Structure:
        """The structure that `to_json` wrote.

        Args:
            data: The bytes.
            label: Of what, for messages.

        Raises:
            CorruptBlobError: These are other bytes.
            StorageError: A newer version of this library has written them.
        """
        try:
            doc = json.loads(data)
            if doc["format"] != FORMAT:
                raise StorageError(
                    f"{label} is of format {doc['format']!r:.20}, and this version of tensordb_data reads format"
                    f" {FORMAT}: install a newer one"
                )
            return cls(
                {_text(name): Schema.from_doc(part) for name, part in doc["schemas"].items()},
                {_text(name): (_count(pair[0]), _count(pair[1])) for name, pair in doc["versions"].items()},
                rows := [_count(number, MOST_ROWS) for number in doc["rows"]],
                {name: _pieces(name, pieces, len(rows)) for name, pieces in doc["columns"].items()},
                _count(doc["holes"]),
                json_util.loads(json.dumps(doc["set"]), json_options=_JSON),
            )
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
            OverflowError,
            SchemaError,
        ) as error:
            raise CorruptBlobError(f"{label} is damaged: its structure is none ({error!r:.200})") from None


def small(piece: Piece) -> bytes | None:
    """The bytes of a piece that is in the structure itself; None for others."""
    return base64.b64decode(piece[1:], validate=True) if isinstance(piece, str) else None


def inline(data: bytes) -> str:
    """A small piece, for the structure."""
    return "=" + base64.b64encode(data).decode()


def fields_in(columns: Mapping[str, Any], kind: str) -> Iterator[str]:
    """The fields that have columns of a kind, VALUE or BLOB."""
    return (name.removeprefix(kind) for name in columns if name.startswith(kind))


def _said(piece: Piece) -> str | None:
    return piece.hex() if isinstance(piece, bytes) else piece


def _pieces(name: Any, pieces: Any, count: int) -> list[Piece]:
    if not isinstance(pieces, list) or len(pieces) != count:
        raise ValueError(f"column {name!r:.80} has other pieces than {count}")
    return [None if piece is None else _piece(_text(piece)) for piece in pieces]


def _piece(text: str) -> Piece:
    if text.startswith("="):
        base64.b64decode(text[1:], validate=True)
        return text
    found = bytes.fromhex(text)
    if len(found) != _DIGEST:
        raise ValueError(f"{text!r:.80} is no digest")
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, found {value!r:.80}")
    return value


def _count(value: Any, most: int = 1 << 62) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"expected a number of rows, found {value!r:.80}")
    return value
