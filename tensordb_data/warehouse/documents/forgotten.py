"""Documents of what was forgotten."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from bson import ObjectId
    from typing_extensions import NotRequired

    from tensordb_data.warehouse.documents.samples import AuthorDocument


class ForgottenIds(TypedDict):
    """The samples of one dataset."""

    d: str
    """The dataset."""
    v: bytes
    """Their `_id`s, of 12 bytes each."""


class ForgottenDocument(TypedDict):
    """`forgotten`: samples that were forgotten, or are about to be. See `time.forget`."""

    _id: ObjectId
    p: str
    """The project."""
    at: dt.datetime
    reason: str
    by: AuthorDocument
    n: int
    """How many samples."""
    done: bool
    ids: NotRequired[list[ForgottenIds]]
    """Until it is done, as is what follows."""
    k: NotRequired[list[ObjectId]]
    """Segments that have their blobs."""
    files: NotRequired[list[str]]
    """Files of those in place."""
    trained_on: list[ObjectId]
    """Parameter sets that had seen any of them."""
    scored_on: list[ObjectId]
    plans: list[ObjectId]
    """Parameter sets whose stored plans may have some of them."""
