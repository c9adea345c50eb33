"""Databases of SQLite that others have written: they are only read, and no code in them runs."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from tensordb_data.errors import CorruptBlobError, StorageError
from tensordb_data.logs.imported.source import opened

ERRORS = (sqlite3.Error, UnicodeDecodeError, OverflowError)
"""What SQLite raises on a damaged database: its messages may hold bytes of it."""
_LONGEST = 64 << 20  # bytes of a text
_LIMIT_LENGTH = 0  # as SQLite numbers it
_CACHE = -8192  # KiB, as SQLite wants it
_SQLITE = b"SQLite format 3\0"


def columns(base: sqlite3.Connection, table: str) -> set[str]:
    """The columns of a table; none of a view, which could be anything."""
    if base.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)).fetchone() is None:
        return set()
    return {row[1] for row in base.execute(f"PRAGMA table_info({table})")}


@contextlib.contextmanager
def connected(place: Path) -> Iterator[sqlite3.Connection]:
    """A database that is only read. What its writer has not merged yet is read too, where it lies beside it.

    Raises:
        StorageError: It cannot be read.
        CorruptBlobError: It is none.
    """
    with opened(place) as file:
        if file.read(len(_SQLITE)) != _SQLITE:
            raise CorruptBlobError("expected a database of SQLite, found something else")
    beside = [place.with_name(place.name + end) for end in ("-wal", "-shm", "-journal")]
    if any(each.is_symlink() for each in beside):
        raise StorageError("a link lies beside it as its journal, which is not followed")
    live = any(each.is_file() and each.stat().st_size for each in (beside[0], beside[2]))
    base = sqlite3.connect(f"{place.as_uri()}?mode=ro{'' if live else '&immutable=1'}", uri=True, timeout=5)
    try:
        for setting in ("trusted_schema=OFF", "cell_size_check=ON", "mmap_size=0", f"cache_size={_CACHE}",
                        "query_only=ON"):  # fmt: skip
            base.execute(f"PRAGMA {setting}")
        if hasattr(base, "setlimit"):  # from Python 3.11 on
            base.setlimit(_LIMIT_LENGTH, _LONGEST)
        base.text_factory = lambda data: data.decode(errors="replace")
        yield base
    finally:
        base.close()


def reason(error: Exception) -> str:
    """An error in words."""
    if isinstance(error, ERRORS):
        return f"SQLite cannot read it, it is damaged or in use: {error}"
    return str(error)
