"""Documents of feedback: what runs have found out about samples."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from bson import ObjectId
    from typing_extensions import NotRequired


class FeedbackDocument(TypedDict):
    """`feedback`: some samples and what a run has told of them, or which such documents count. See `feedback.store`."""

    _id: ObjectId | dict[str, Any]
    """Of the state of a number: its `p`, `r` and `m`."""
    p: str
    """The project."""
    r: str
    """The run."""
    m: str
    """The name of the number."""
    g: ObjectId | Literal["state"] | None
    """None for what a flush has added. What a merge has written counts if this is the `base` of the state."""
    base: NotRequired[ObjectId | None]
    """Of the state alone, as is what follows."""
    merged: NotRequired[list[ObjectId]]
    """The chunks that were merged last, so that none of them is added again."""
    at: NotRequired[dt.datetime]
    """When it was written, by the clock of the process. All that follows is of n samples, in the order of their ids."""
    n: NotRequired[int]
    ids: NotRequired[bytes]
    """Their `_id`s, 12 bytes each."""
    count: NotRequired[bytes]
    """int64: how many numbers each had."""
    mean: NotRequired[bytes]
    """float64."""
    squares: NotRequired[bytes]
    """float64: the sums of the squared differences from the mean."""
    last: NotRequired[bytes]
    """float64."""
