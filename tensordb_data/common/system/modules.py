"""Modules of the standard library, and a library of C, that not every operating system has."""

from __future__ import annotations

import ctypes
import importlib
import sys
from typing import Any

from tensordb_data.errors import TensorDBError


def optional(name: str) -> Any:
    """The module of that name; None where the system has none (`fcntl` on Windows)."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _load_libc() -> Any:
    try:
        return ctypes.CDLL(None, use_errno=True)
    except TypeError:  # Windows
        return None


libc: Any = _load_libc()
"""The library of C of this process; None on Windows."""


def require_linux(what: str, instead: str, error: type[TensorDBError]) -> None:
    """Refuse what needs calls that only Linux has.

    Args:
        what: What was asked for, in the plural: the beginning of the message.
        instead: What to do on another system.
        error: The kind of error to raise.

    Raises:
        TensorDBError: This is another system. It is of the kind `error`.
    """
    if sys.platform != "linux":
        raise error(f"{what} run on Linux only, and this is {sys.platform}: {instead}")
