"""Databases of Trackio, `<project>.db`: read by SQLite, without Trackio, and never written.

metrics          run_name, step, timestamp, metrics (JSON); of some versions project_name, run_id
system_metrics   run_name, timestamp, metrics
configs          run_name, config (JSON)
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensordb_data.errors import CorruptBlobError, QueryError, TensorDBError
from tensordb_data.logs.imported.report import ImportedRuns
from tensordb_data.logs.imported.source import Row, SourceRun, digest, walk
from tensordb_data.logs.imported.sqlite import ERRORS, columns, connected, reason
from tensordb_data.logs.imported.values import from_json, iso


def trackio_runs(source: Path, report: ImportedRuns) -> Iterator[SourceRun]:
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
            with connected(place) as base:
                runs = list(_runs(base, place))
        except (*ERRORS, TensorDBError) as error:
            report.fail(place.name, reason(error))
            continue
        yield from runs


def _runs(base: sqlite3.Connection, place: Path) -> Iterator[SourceRun]:
    there = columns(base, "metrics")
    if not {"run_name", "step", "metrics"} <= there:
        raise CorruptBlobError("expected a database of Trackio with the table metrics, found another one")
    keys = [name for name in ("project_name", "run_id", "run_name") if name in there]
    listed = ", ".join(keys)
    asked = f"SELECT {listed}, COUNT(*), MAX(id) FROM metrics GROUP BY {listed}"
    for *values, count, last in base.execute(asked if "id" in there else asked.replace("MAX(id)", "COUNT(*)")):
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
        with connected(place) as base:
            run.config = _config(base, known)
            yield from _rows(base, run, "metrics", known, "train")
            yield from _rows(base, run, "system_metrics", known, "system")
    except ERRORS as error:
        raise CorruptBlobError(f"{place.name}: {reason(error)}") from None


def _rows(base: sqlite3.Connection, run: SourceRun, table: str, known: dict[str, str], kind: str) -> Iterator[Row]:
    there = columns(base, table)
    if not {"run_name", "metrics"} <= there:
        return
    condition, values = _condition(there, known)
    step = "step" if "step" in there else "NULL"
    time = "timestamp" if "timestamp" in there else "NULL"
    asked = f"SELECT {step}, {time}, metrics FROM {table} WHERE {condition} ORDER BY rowid"
    for number, (at, when, text) in enumerate(base.execute(asked, values)):
        found = _object(text, f"row {number} of {table}")
        if not isinstance(at, int) and (at is not None or table == "metrics"):
            raise CorruptBlobError(f"row {number} of {table}: expected a step, found {at!r:.100}")
        seconds = iso(when)
        run.spans(seconds)
        yield Row(number if at is None else at, found, seconds, kind)


def _config(base: sqlite3.Connection, known: dict[str, str]) -> dict[str, Any]:
    there = columns(base, "configs")
    if not {"run_name", "config"} <= there:
        return {}
    condition, values = _condition(there, known)
    found = base.execute(f"SELECT config FROM configs WHERE {condition} LIMIT 1", values).fetchone()
    return {} if found is None else _object(found[0], "configuration")


def _condition(there: set[str], known: dict[str, str]) -> tuple[str, list[str]]:
    names = [name for name in known if name in there]
    return " AND ".join(f"{name} = ?" for name in names), [known[name] for name in names]


def _object(text: Any, what: str) -> dict[str, Any]:
    found = from_json(text) if isinstance(text, (str, bytes)) else text
    if not isinstance(found, dict):
        raise CorruptBlobError(f"{what}: expected a JSON object, found {found!r:.100}")
    return found
