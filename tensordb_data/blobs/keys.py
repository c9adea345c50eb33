"""Which names objects of ours have. Nothing else is ever deleted from a store."""

from __future__ import annotations

import re
from typing import Any

FOLDERS = ("segments", "params", "architectures", "logs", "tombstones", "frozen")
"""The folders of a store that are ours."""

_ID = "[0-9a-f]{24}"
_KEY = re.compile(
    rf"(segments|tombstones)/{_ID}|(params|architectures|logs|frozen)/{_ID}(-[0-9]+)?\.safetensors", re.ASCII
)
_TEMPORARY = re.compile(r"\.put-[0-9]+-[0-9a-f]{12}", re.ASCII)


def is_key(key: Any) -> bool:
    """Whether a key is of the form of a segment, an object of tensors, or a tombstone."""
    return isinstance(key, str) and _KEY.fullmatch(key) is not None


def is_temporary(name: str) -> bool:
    """Whether a file's name is one that an unfinished object has in a folder."""
    return _TEMPORARY.fullmatch(name) is not None
