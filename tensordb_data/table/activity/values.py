"""Values of documents that other tools may have written: what is of another kind counts as nothing."""

from __future__ import annotations

import datetime as dt


def text(value: object) -> str:
    """A short text."""
    return value[:200] if isinstance(value, str) else "" if value is None else str(value)[:200]


def whole(value: object) -> int:
    """A whole number; 0 for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _moment(value: object) -> dt.datetime | None:
    if not isinstance(value, dt.datetime):
        return None
    return value.replace(tzinfo=dt.timezone.utc) if value.tzinfo is None else value


def age(since: object, until: object) -> float | None:
    """Seconds from a time until another one; None where one of them is no time."""
    began, ended = _moment(since), _moment(until)
    return None if began is None or ended is None else (ended - began).total_seconds()
