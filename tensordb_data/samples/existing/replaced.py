"""References to blobs that take the place of others.

A blob is never changed. A sample gets a reference to a new one, which says with which mutation it came, `m`, and what
was there before, `was`. So a stream whose plan is older reads the earlier bytes, or stops, and never gives the new ones
to the label that it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.blobs.segments.inline import is_inline

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_KEPT = 3
"""How many earlier blobs a reference names."""

Doc = dict[str, Any]


def new_reference(reference: Mapping[str, Any], before: Mapping[str, Any] | None, mutation: int) -> Doc:
    """What a sample gets as its reference.

    Args:
        reference: Where the new blob is.
        before: The reference that the sample has; None if it has no such blob.
        mutation: The mutation counter of the dataset, raised by this change.
    """
    return {**reference, "m": mutation, **({} if before is None else {"was": _earlier(before)})}


def note_replaced(warehouse: Warehouse, before: Iterable[Mapping[str, Any]], mutation: int, session: Any) -> None:
    """In the transaction that replaces references: let gc keep their segments for plans that are older."""
    segments: set[ObjectId] = {part["k"] for part in before if not is_inline(part)}
    if segments:
        named = {"_id": {"$in": sorted(segments)}}
        warehouse.index["segments"].update_many(named, {"$max": {"replaced": mutation}}, session=session)


def _earlier(part: Mapping[str, Any], depth: int = _KEPT) -> Doc:
    """A reference that was replaced, with those before it, as far as they can be read: not of bytes in a document."""
    kept = {key: value for key, value in part.items() if key in ("k", "o", "n", "z", "m")}
    if "was" in part and depth > 1:
        kept["was"] = _earlier(part["was"], depth - 1)
    return kept
