"""Names and values of other trackers as rows and configurations hold them."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tensordb_data.errors import CorruptBlobError
from tensordb_data.logs.arrays import Logged
from tensordb_data.logs.writer import RESERVED

Leave = Callable[[str], None]
"""Counts something that is left out, by what it is."""

_LONGEST = 500  # characters of a name
_MOST_NAMES = 100_000  # of the metrics of a run
_DEEP = 20  # levels of what is nested
_INTEGER = re.compile(r"[+-]?\d{1,18}")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_WORDS: dict[str, Any] = {"true": True, "false": False, "none": None, "null": None}
_ODD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "infinity": math.inf, "-infinity": -math.inf}


class Names:
    """The names that metrics have here: a name cannot have a dot, and some are taken. Each name has one of its own."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}
        self._taken: set[str] = set()

    def __call__(self, name: str) -> str:
        """The name here.

        Raises:
            CorruptBlobError: There are too many.
        """
        found = self.known.get(name)
        if found is not None:
            return found
        if len(self.known) >= _MOST_NAMES:
            raise CorruptBlobError(f"expected at most {_MOST_NAMES:,} metrics in a run, found more")
        wanted = found = f"{clean_name(name)}_" if name in RESERVED else clean_name(name)
        number = 2
        while found in self._taken:
            found, number = f"{wanted}_{number}", number + 1
        self._taken.add(found)
        self.known[name] = found
        return found

    @property
    def changed(self) -> list[tuple[str, str]]:
        """Names that are others here."""
        return [(there, here) for there, here in self.known.items() if there != here]


def clean_name(name: str) -> str:
    """A name without what a field cannot have: a dot becomes a slash."""
    found = clean_text(name).replace(".", "/")
    found = f"_{found[1:]}" if found[:1] == "$" else found
    if len(found) > _LONGEST:
        found = f"{found[:_LONGEST]}~{hashlib.blake2b(found.encode(), digest_size=8).hexdigest()}"
    return found or "_"


def clean_text(text: str) -> str:
    """A text that can be stored: without lone surrogates and zeros."""
    return text.encode(errors="replace").decode().replace("\0", "�")


def from_text(text: str) -> Any:
    """The value that a text of a configuration stands for: a number, True, False, None; else the text."""
    word = text.strip().lower()
    if _INTEGER.fullmatch(word):
        return int(word)
    if _NUMBER.fullmatch(word):
        return float(word)
    return _WORDS[word] if word in _WORDS else _ODD.get(word, clean_text(text))


def from_json(text: str | bytes) -> Any:
    """What is written as JSON.

    Raises:
        CorruptBlobError: It is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptBlobError(f"expected JSON, found something else: {error}") from None


def flat(values: Mapping[str, Any], leave: Leave, above: str = "", depth: int = 0) -> dict[str, Any]:
    """The values of a row: what is nested gets names with slashes, and what a log does not hold is left out."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            what = value.get("_type")
            if what == "histogram" and (counted := _histogram(value)) is not None:
                found[f"{above}{name}"] = counted
            elif isinstance(what, str):
                leave(f"values of the type {clean_text(what)[:40]}")
            elif depth >= _DEEP:
                leave("values that are nested too deep")
            else:
                for here, inner in flat(value, leave, f"{above}{name}/", depth + 1).items():
                    if here in found:
                        leave("values whose name is taken by another of the same row")
                    found.setdefault(here, inner)
            continue
        if f"{above}{name}" in found:
            leave("values whose name is taken by another of the same row")
            continue
        try:
            found[f"{above}{name}"] = value if isinstance(value, Logged) else plain(value)
        except TypeError:
            leave("nested lists")
    return found


def config(values: Mapping[Any, Any], depth: int = 0) -> dict[str, Any]:
    """A configuration as a run holds it. What is in lists and cannot be stored becomes a text."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        here = wanted = clean_name(str(name))
        number = 2
        while here in found:
            here, number = f"{wanted}_{number}", number + 1
        if isinstance(value, Mapping) and depth < _DEEP:
            found[here] = config(value, depth + 1)
            continue
        try:
            found[here] = plain(value)
        except TypeError:
            found[here] = clean_text(json.dumps(value)[:10_000])
    return found


def plain(value: Any) -> Any:
    """A number, text, or list of them.

    Raises:
        TypeError: It is none.
    """
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int):
        if -(2**63) <= value < 2**63:
            return value
        return float(value) if abs(value) < 10**300 else math.inf if value > 0 else -math.inf
    if isinstance(value, str):
        return _ODD.get(value.lower() if len(value) < 10 else "", clean_text(value))
    if isinstance(value, list) and not any(isinstance(item, (list, dict)) for item in value):
        return [plain(item) for item in value]
    raise TypeError


def moment(seconds: float | None) -> dt.datetime | None:
    """A time in seconds since 1970; None where it is none."""
    try:
        return None if seconds is None else dt.datetime.fromtimestamp(seconds, dt.timezone.utc)
    except (ValueError, OverflowError, OSError):
        return None


def iso(text: Any) -> float | None:
    """A time in the format of ISO, in seconds since 1970; None where it is none. Without a zone it is UTC."""
    try:
        found = dt.datetime.fromisoformat(str(text).replace("Z", "+00:00"))
        return (found if found.tzinfo else found.replace(tzinfo=dt.timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return None


def histogram(counts: Any, edges: Any) -> Logged | None:
    """Counts and the edges of their bins; None if they are no histogram that a log holds."""
    try:
        numbers, ends = np.asarray(counts, np.float64), np.asarray(edges, np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    if numbers.ndim != 1 or ends.shape != (len(numbers) + 1,) or not 0 < len(numbers) <= 4096:
        return None
    whole = np.isfinite(numbers).all() and np.isfinite(ends).all() and (np.diff(ends) >= 0).all()
    return Logged(numbers, ends) if whole and (numbers >= 0).all() else None


def _histogram(value: Mapping[str, Any]) -> Logged | None:
    return histogram(value.get("values"), value.get("bins"))
