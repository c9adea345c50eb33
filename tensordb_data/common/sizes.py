"""Numbers of bytes as people write them."""

from __future__ import annotations

import re

from tensordb_data.errors import QueryError

_UNITS = {
    "": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}


def parse_size(size: int | str, name: str) -> int:
    """Bytes in a size such as `"200GB"`, `"1.5 GiB"` or a number, given as the argument `name`.

    Raises:
        QueryError: It is not one, or not positive.
    """
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    match = (
        re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", size, re.IGNORECASE) if isinstance(size, str) else None
    )
    found = 0
    if match is not None:
        unit = (match[2] or "").lower()
        found = int(float(match[1]) * _UNITS[f"{unit}b" if unit else ""])
    if found < 1:
        raise QueryError(f'{name} is a positive number of bytes, or a size such as "200GB" or "50GiB"; found {size!r}')
    return found


def show_size(nbytes: int) -> str:
    """A number of bytes, such as `"19.3 GB"`."""
    size, units = float(nbytes), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 999.95 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{nbytes:,} bytes" if units[0] == "bytes" else f"{size:.1f} {units[0]}"
