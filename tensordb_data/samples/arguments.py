"""Check the arguments of a writer: the name of the dataset, compression and tags."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

from tensordb_data.common.bson_values import member_value
from tensordb_data.errors import QueryError
from tensordb_data.query.tags import clean_tags


def check_dataset_name(name: object) -> None:
    """Check the name of a dataset.

    Raises:
        QueryError: It is malformed.
    """
    if not isinstance(name, str) or not name or "\0" in name or not encodable(name):
        raise QueryError(f"a dataset is named by a non-empty string of valid Unicode; found {name!r}")


def compression_level(compression: object) -> int | None:
    """The zstd level that `compression=` asks for; None for no compression.

    Raises:
        QueryError: It is malformed.
    """
    if compression is None:
        return None
    match = re.fullmatch(r"zstd(?::(-?\d+))?", compression) if isinstance(compression, str) else None
    level = int(match[1] or 3) if match else 0
    if match is None or not (-50 <= level <= 22) or level == 0:
        raise QueryError(
            f'compression is None, "zstd" or "zstd:LEVEL" with a level from 1 to 22; found {compression!r}'
        )
    return level


def encodable(text: str) -> bool:
    """Whether a text is valid Unicode."""
    return text == text.encode(errors="replace").decode()


def sample_tags(tags: str | Sequence[str]) -> list[str]:
    """The tags of one sample.

    Raises:
        QueryError: They are malformed.
    """
    tags = member_value(tags)
    if not isinstance(tags, (str, list, tuple, set, frozenset)):
        raise QueryError(f"tags are a list of strings; found {tags!r}")
    given = [tags] if isinstance(tags, str) else list(tags)
    return clean_tags(given) if given else []


def tags_of_samples(tags: Any, n: int) -> Any:
    """The tags of each of n samples, given once for all or as n lists.

    Raises:
        QueryError: They are malformed, or there are not n lists.
    """
    if isinstance(tags, (list, tuple)) and any(not isinstance(member_value(tag), str) for tag in tags):
        if len(tags) != n:
            raise QueryError(
                f"tags are a list of strings for all samples, or a list of {n} lists; found {len(tags)} items"
            )
        return iter([sample_tags(each) for each in tags])
    return itertools.repeat(sample_tags(tags))
