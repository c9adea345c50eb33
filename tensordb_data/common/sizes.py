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
_SHOWN = ("B", "kB", "MB", "GB", "TB", "PB")


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


def show_size(nbytes: float, space: str = " ") -> str:
    """A number of bytes for people: `784 B`, `33.6 MB`.

    Args:
        nbytes: The number.
        space: What stands before the unit.
    """
    amount, power = float(nbytes), 0
    while abs(amount) >= (1000 if power == 0 else 999.5) and power < len(_SHOWN) - 1:
        amount, power = amount / 1000, power + 1
    text = f"{amount:.0f}" if power == 0 or abs(amount) >= 999.5 else f"{amount:.3g}"
    return f"{text}{space}{_SHOWN[power]}"
