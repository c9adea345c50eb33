"""Documents of frozen sets."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from bson import ObjectId


class FrozenBy(TypedDict):
    """Who has frozen a set."""

    user: str
    host: str


class FrozenCount(TypedDict):
    """How many of the samples of a set a dataset had."""

    name: str
    """Its name at that time."""
    count: int


class FrozenSetInternals(TypedDict):
    """`_tdb` of a frozen set."""

    p: str
    """The project."""
    structure: bytes
    """The content address of its structure, which is stored as a tensor."""
    tensors: list[bytes]
    """The content addresses of its pieces, the structure included."""


class FrozenSetDocument(TypedDict):
    """`frozen`: one frozen set. See `frozen.structure`."""

    _id: ObjectId
    name: str
    tags: list[str]
    created: dt.datetime
    by: FrozenBy
    query: str
    """The query that was frozen, as JSON."""
    count: int
    """How many samples it has."""
    holes: int
    """How many samples were blanked since."""
    datasets: list[FrozenCount]
    fields: list[str]
    fingerprint: str
    """Of samples, values and places of blobs."""
    bytes: int
    """Bytes of its pieces, those included that it shares with other sets."""
    _tdb: FrozenSetInternals


class FrozenSegmentsDocument(TypedDict):
    """`frozen_segments`: some of the segments that a frozen set refers to. A gc keeps them."""

    _id: ObjectId
    p: str
    """The project."""
    set: ObjectId
    k: list[ObjectId]
    """The segments."""
