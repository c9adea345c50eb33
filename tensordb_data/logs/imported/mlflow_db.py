"""Databases of MLflow, `mlflow.db`: read by SQLite, without MLflow, and never written.

experiments     experiment_id, name, lifecycle_stage
runs            run_uuid, name, status, start_time, end_time (ms), lifecycle_stage, experiment_id
metrics         run_uuid, key, value, timestamp (ms), step, is_nan
params, tags    run_uuid, key, value
"""

from __future__ import annotations

import functools
import math
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensordb_data.errors import CorruptBlobError, TensorDBError
from tensordb_data.logs.imported.report import ImportedRuns
from tensordb_data.logs.imported.source import Row, SourceRun, digest
from tensordb_data.logs.imported.sqlite import ERRORS, columns, connected, reason
from tensordb_data.logs.imported.values import from_text

_NEEDED = {
    "experiments": {"experiment_id", "name"},
    "runs": {"run_uuid", "name", "status", "start_time", "end_time", "lifecycle_stage", "experiment_id"},
    "metrics": {"run_uuid", "key", "value", "timestamp", "step", "is_nan"},
    "params": {"run_uuid", "key", "value"},
    "tags": {"run_uuid", "key", "value"},
}
_STATUS = {"RUNNING": "lost", "SCHEDULED": "lost", "FINISHED": "ended", "FAILED": "failed", "KILLED": "ended"}
_LARGEST = 1.7976931348623157e308  # as which infinity stands there
_MOST = 100_000  # params and tags of a run


def mlflow_db_runs(place: Path, report: ImportedRuns) -> Iterator[SourceRun]:
    """The runs of a database."""
    try:
        with connected(place) as base:
            runs = list(_runs(base, place, report))
    except (*ERRORS, TensorDBError) as error:
        report.fail(place.name, reason(error))
        return
    yield from runs


def _runs(base: sqlite3.Connection, place: Path, report: ImportedRuns) -> Iterator[SourceRun]:
    for table, needed in _NEEDED.items():
        if missing := needed - columns(base, table):
            raise CorruptBlobError(
                f"expected a database of MLflow, found no {table} with {', '.join(sorted(missing))}: let MLflow upgrade"
                " it by `mlflow db upgrade`, if it is an old one"
            )
    counts = dict(base.execute("SELECT run_uuid, COUNT(*) FROM metrics GROUP BY run_uuid"))
    asked = (
        "SELECT r.run_uuid, r.name, r.status, r.start_time, r.end_time, r.lifecycle_stage, e.name FROM runs r "
        "LEFT JOIN experiments e ON e.experiment_id = r.experiment_id ORDER BY r.rowid"
    )
    for id, name, status, began, ended, stage, experiment in base.execute(asked):
        if stage == "deleted":
            report.leave_out({"deleted runs": 1})
            continue
        if not isinstance(id, str) or not id:
            raise CorruptBlobError(f"expected the id of a run, found {id!r:.100}")
        run = SourceRun(
            id, str(name or id), digest(counts.get(id), name, status, ended), functools.partial(_read, place=place),
            f"{place.name}, {id:.100}", status=_STATUS.get(status, "ended"), began=_seconds(began),
            ended=_seconds(ended),
        )  # fmt: skip
        if experiment is not None:
            run.about["experiment"] = str(experiment)
        tags = _pairs(base, "tags", id)
        run.name = tags.get("mlflow.runName") or run.name
        run.about |= {name: text for name, text in tags.items() if name.startswith("mlflow.")}
        run.tags = [f"{name}={text}" if text else name for name, text in tags.items() if name not in run.about]
        yield run


def _read(run: SourceRun, place: Path) -> Iterator[Row]:
    try:
        with connected(place) as base:
            run.config = {name: from_text(text) for name, text in _pairs(base, "params", run.id).items()}
            for kind, condition in (("train", "NOT LIKE"), ("system", "LIKE")):
                yield from _rows(base, run.id, kind, condition)
    except ERRORS as error:
        raise CorruptBlobError(f"{place.name}: {reason(error)}") from None


def _rows(base: sqlite3.Connection, id: str, kind: str, condition: str) -> Iterator[Row]:
    asked = (
        f"SELECT key, value, timestamp, step, is_nan FROM metrics WHERE run_uuid = ? AND key {condition} 'system/%' "
        "ORDER BY step, timestamp"
    )
    row: Row | None = None
    for name, value, time, step, is_nan in base.execute(asked, (id,)):
        if not isinstance(name, str) or not isinstance(step, int) or not isinstance(value, (int, float)):
            raise CorruptBlobError(f"expected a metric with a number and a step, found {(name, value, step)!r:.200}")
        if row is None or row.step != step or name in row.values or len(row.values) >= 1_000:
            if row is not None:
                yield row
            row = Row(step, {}, _seconds(time), kind)
        row.values[name] = math.nan if is_nan else math.copysign(math.inf, value) if abs(value) >= _LARGEST else value
    if row is not None:
        yield row


def _pairs(base: sqlite3.Connection, table: str, id: str) -> Mapping[str, str]:
    asked = f"SELECT key, value FROM {table} WHERE run_uuid = ? LIMIT {_MOST + 1}"
    found = {str(key): str(value) for key, value in base.execute(asked, (id,))}
    if len(found) > _MOST:
        raise CorruptBlobError(f"run {id:.100}: expected at most {_MOST:,} {table}, found more")
    return found


def _seconds(value: Any) -> float | None:
    return value / 1000 if isinstance(value, (int, float)) else None
