"""The document of the warehouse itself, and the entries of the search index."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from bson import Binary
    from typing_extensions import NotRequired


class BlobRootDocument(TypedDict):
    """One place for blobs."""

    id: int
    url: str


class WarehouseDocument(TypedDict):
    """`warehouse`: the only document of this collection. See `warehouse.catalog`."""

    _id: Literal["warehouse"]
    format: int
    """See docs/format.md."""
    roots: list[BlobRootDocument]
    words: NotRequired[int]
    """The generation of the words of all entries, see `search.index`."""
    rebuilding: NotRequired[list[str]]
    """The projects of which a rebuild has begun and not ended."""


class EntryField(TypedDict):
    """The field of a dataset that an entry of the search index is about."""

    n: str
    """The name of the field."""
    v: NotRequired[str]
    """A text that the field has."""
    r: NotRequired[list[str]]
    """Of a word page: words of the field."""
    e: NotRequired[list[Any]]
    """Of a word page: for each word the `_id` of one sample that has it."""


class EntryDocument(TypedDict):
    """`search`: one entry of the search index. See `search.index`."""

    _id: Binary
    """A hash of what the entry is about."""
    p: str
    """The project."""
    k: str
    """The collection."""
    n: str
    """The name: of a dataset, run or architecture, or the kind of a job."""
    t: list[str]
    """The tags."""
    x: list[str]
    """The texts."""
    w: list[str]
    """The words by which it is found. A scoped one begins with a blank."""
    g: NotRequired[int]
    """The generation of `w`, see `search.index`; not there in entries of 0.1."""
    at: dt.datetime
    """When it was written last."""
    e: NotRequired[Any]
    """The `_id` of the entity, or of one of the group."""
    f: NotRequired[EntryField]
    """Of an entry for a text or for words: the field."""
