"""Which process of which machine has written something down, and whether it has ended since.

A number of a process says little: it is given again, and means nothing on another machine or in another container. So
an identity also has the boot of the machine, the namespace of the number, and when the process began.
"""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")
_STATE, _STARTED = 0, 19  # places behind the name of the program in /proc/<pid>/stat
_ENDED = frozenset("ZXx")  # killed, and its parent has not asked yet


def process_identity() -> str | None:
    """The identity of this process; None where the system does not tell."""
    place = _place()
    found = _stat(os.getpid())
    return None if place is None or found is None else f"{place} {os.getpid()} {found[_STARTED]}"


def has_ended(identity: object) -> bool | None:
    """Whether a process has ended.

    Args:
        identity: What `process_identity` returned there.

    Returns:
        None if that cannot be known here: it was on another machine, or in another container.
    """
    words = identity.split() if isinstance(identity, str) else []
    if len(words) != 4 or not words[2].isdecimal() or " ".join(words[:2]) != _place():
        return None
    found = _stat(int(words[2]))
    return found is None or found[_STARTED] != words[3] or found[_STATE] in _ENDED


def _place() -> str | None:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat(_PROC / 'self/ns/pid').st_ino}"
    except OSError:
        return None


def _stat(pid: int) -> list[str] | None:
    """The fields of a process from its state on; None if there is none of this number."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return fields if len(fields) > _STARTED else None
