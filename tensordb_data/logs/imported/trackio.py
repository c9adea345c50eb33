"""Databases of Trackio, `<project>.db`: read by SQLite, without Trackio, and never written.

metrics          run_name, step, timestamp, metrics (JSON); of some versions project_name, run_id
system_metrics   run_name, timestamp, metrics
configs          run_name, config (JSON)
"""

from __future__ import annotations

import contextlib
import functools
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensordb_data.errors import CorruptBlobError, QueryError, StorageError, TensorDBError
from tensordb_data.logs.imported.report import Imported
from tensordb_data.logs.imported.source import Row, SourceRun, digest, opened, walk
from tensordb_data.logs.imported.values import from_json, iso

_LONGEST = 64 << 20  # bytes of a text
_LIMIT_LENGTH = 0  # as SQLite numbers it
_CACHE = -8192  # KiB, as SQLite wants it
_SQLITE = b"SQLite format 3\0"


def trackio_runs(source: Path, report: Imported) -> Iterator[SourceRun]:
    """The runs of a database, or of those in a folder.

    Raises:
        QueryError: There is none.
    """
    if source.is_dir():
        places = [Path(file.path) for file in walk(str(source), report.fail, frozenset(("media",)))
                  if file.name.endswith(".db")]  # fmt: skip
    else:
        places = [source]
    if not places:
        raise QueryError(f"{source}: expected a database of Trackio (<project>.db) or a folder of them, found none")
    for place in places:
        try:
            with _connected(place) as base:
                runs = list(_runs(base, place))
        except (sqlite3.Error, TensorDBError) as error:
            report.fail(place.name, _reason(error))
            continue
        yield from runs


def _runs(base: sqlite3.Connection, place: Path) -> Iterator[SourceRun]:
    columns = _columns(base, "metrics")
    if not {"run_name", "step", "metrics"} <= columns:
        raise CorruptBlobError("expected a database of Trackio with the table metrics, found another one")
    keys = [name for name in ("project_name", "run_id", "run_name") if name in columns]
    listed = ", ".join(keys)
    asked = f"SELECT {listed}, COUNT(*), MAX(id) FROM metrics GROUP BY {listed}"
    for *values, count, last in base.execute(asked if "id" in columns else asked.replace("MAX(id)", "COUNT(*)")):
        if not all(isinstance(value, str) or value is None for value in values):
            raise CorruptBlobError(f"expected names of runs, found {values!r:.200}")
        known = dict(zip(keys, values, strict=True))
        name = known["run_name"] or "run"
        project = known.get("project_name") or place.stem
        where = {key: value for key, value in known.items() if value is not None}
        yield SourceRun(
            digest(project, known.get("run_id"), name), name, digest(count, last),
            functools.partial(_read, place=place, known=where), f"{place.name}, {name:.200}",
            about={"project": project},
        )  # fmt: skip


def _read(run: SourceRun, place: Path, known: dict[str, str]) -> Iterator[Row]:
    try:
        with _connected(place) as base:
            run.config = _config(base, known)
            yield from _rows(base, run, "metrics", known, "train")
            yield from _rows(base, run, "system_metrics", known, "system")
    except sqlite3.Error as error:
        raise CorruptBlobError(f"{place.name}: {_reason(error)}") from None


def _rows(base: sqlite3.Connection, run: SourceRun, table: str, known: dict[str, str], kind: str) -> Iterator[Row]:
    columns = _columns(base, table)
    if not {"run_name", "metrics"} <= columns:
        return
    condition, values = _condition(columns, known)
    step = "step" if "step" in columns else "NULL"
    time = "timestamp" if "timestamp" in columns else "NULL"
    asked = f"SELECT {step}, {time}, metrics FROM {table} WHERE {condition} ORDER BY rowid"
    for number, (at, when, text) in enumerate(base.execute(asked, values)):
        found = _object(text, f"row {number} of {table}")
        if not isinstance(at, int) and (at is not None or table == "metrics"):
            raise CorruptBlobError(f"row {number} of {table}: expected a step, found {at!r:.100}")
        seconds = iso(when)
        run.spans(seconds)
        yield Row(number if at is None else at, found, seconds, kind)


def _config(base: sqlite3.Connection, known: dict[str, str]) -> dict[str, Any]:
    columns = _columns(base, "configs")
    if not {"run_name", "config"} <= columns:
        return {}
    condition, values = _condition(columns, known)
    found = base.execute(f"SELECT config FROM configs WHERE {condition} LIMIT 1", values).fetchone()
    return {} if found is None else _object(found[0], "configuration")


def _condition(columns: set[str], known: dict[str, str]) -> tuple[str, list[str]]:
    names = [name for name in known if name in columns]
    return " AND ".join(f"{name} = ?" for name in names), [known[name] for name in names]


def _object(text: Any, what: str) -> dict[str, Any]:
    found = from_json(text) if isinstance(text, (str, bytes)) else text
    if not isinstance(found, dict):
        raise CorruptBlobError(f"{what}: expected a JSON object, found {found!r:.100}")
    return found


def _columns(base: sqlite3.Connection, table: str) -> set[str]:
    """The columns of a table; none of a view, which could be anything."""
    if base.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)).fetchone() is None:
        return set()
    return {row[1] for row in base.execute(f"PRAGMA table_info({table})")}


@contextlib.contextmanager
def _connected(place: Path) -> Iterator[sqlite3.Connection]:
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
                        "query_only=ON", "temp_store=MEMORY"):  # fmt: skip
            base.execute(f"PRAGMA {setting}")
        if hasattr(base, "setlimit"):  # from Python 3.11 on
            base.setlimit(_LIMIT_LENGTH, _LONGEST)
        base.text_factory = lambda data: data.decode(errors="replace")
        yield base
    finally:
        base.close()


def _reason(error: Exception) -> str:
    if isinstance(error, sqlite3.Error):
        return f"SQLite cannot read it, it is damaged or in use: {error}"
    return str(error)
