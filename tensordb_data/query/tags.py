"""Check the tags of entities."""

from __future__ import annotations

from collections.abc import Sequence

from tensordb_data.common.bson_values import member_value
from tensordb_data.errors import QueryError


def clean_tags(tags: Sequence[object]) -> list[str]:
    """The tags without repetitions.

    Raises:
        QueryError: There is none, or one is not a non-empty string.
    """
    if not tags:
        raise QueryError("at least one tag is needed")
    tags = [member_value(tag) for tag in tags]
    for tag in tags:
        if not isinstance(tag, str) or not tag:
            raise QueryError(f"a tag is a non-empty string; found {tag!r}")
        if "\0" in tag or tag != tag.encode(errors="replace").decode():
            raise QueryError(f"the tag {tag!r} is not valid text")
    return list(dict.fromkeys(str.__str__(tag) for tag in tags))
