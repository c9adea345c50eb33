"""Documents of sources that are in."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from bson import ObjectId


class SourceFile(TypedDict):
    """A file of a source that is in."""

    f: str
    """Its name below the source."""
    z: int
    """Its bytes."""
    t: str
    """Its time, or its ETag."""
    n: int
    """How many rows of it are in."""


_SourceDeletions = TypedDict("_SourceDeletions", {"del": int})


class SourceDocument(_SourceDeletions):
    """`sources`: some files of a source that are in. See `ingest.engine.file_log`."""

    _id: ObjectId
    p: str
    """The project."""
    dataset: str
    s: str
    """The source."""
    o: bytes
    """A digest of the options that decide which rows it gives."""
    born: dt.datetime
    """`created` of the dataset."""
    files: list[SourceFile]
