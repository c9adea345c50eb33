"""File stores of MLflow, `mlruns/`: their files are read without MLflow, and without a server.

<experiment>/meta.yaml                  name, lifecycle_stage
<experiment>/<run>/meta.yaml            run_id, run_name, status, start_time, end_time (ms), lifecycle_stage
<experiment>/<run>/metrics/<name>       lines `time value step`; a slash in a name is a folder
<experiment>/<run>/params/<name>        a value
<experiment>/<run>/tags/<name>          a value
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from tensordb_data.common.chunks import chunks
from tensordb_data.errors import CorruptBlobError, QueryError, TensorDBError
from tensordb_data.logs.imported.mlflow_db import mlflow_db_runs
from tensordb_data.logs.imported.report import ImportedRuns
from tensordb_data.logs.imported.source import File, Row, SourceRun, digest, opened, read_small, walk
from tensordb_data.logs.imported.values import from_text

_TOGETHER = 100  # files of metrics that are open at once
_LINE = 4096  # bytes of a line
_ABOUT = 8 << 20  # bytes of params and tags
_BASE = "mlflow.db"
_META = "meta.yaml"
_STATUS = {"1": "lost", "2": "lost", "3": "ended", "4": "failed", "5": "ended"}
_WORDS = {"RUNNING": "lost", "SCHEDULED": "lost", "FINISHED": "ended", "FAILED": "failed", "KILLED": "ended"}


def mlflow_runs(source: Path, report: ImportedRuns) -> Iterator[SourceRun]:
    """The runs of a store, of an experiment, or one run; and those of a database.

    Raises:
        QueryError: There is none.
    """
    base = source / _BASE if source.is_dir() else source
    found = False
    for run, experiment in _folders(source):
        found = True
        where = str(run.relative_to(source)) if run != source else run.name
        try:
            if run.is_symlink():
                raise CorruptBlobError("a link, which is not followed; name its target")
            meta = _yaml(run / _META)
            if meta.get("lifecycle_stage") == "deleted":
                report.leave_out({"deleted runs": 1})
                continue
            known = _run(run, where, meta, experiment, report)
        except TensorDBError as error:
            report.fail(where, str(error))
            continue
        yield known
    if base.is_file():
        yield from mlflow_db_runs(base, report)
    elif not found:
        raise QueryError(
            f"{source}: expected {_BASE} or a folder mlruns/ of MLflow, or one of its experiments or runs, found none."
            " The runs of a server are in its database: only SQLite is read"
        )


def _folders(source: Path) -> Iterator[tuple[Path, Path | None]]:
    """The folders of runs, and of their experiments."""
    if source.is_dir() and _is_run(source):
        yield source, source.parent if (source.parent / _META).is_file() else None
        return
    for each in _below(source):
        if _is_run(each):
            yield each, source
        elif not each.is_symlink():
            yield from ((run, each) for run in _below(each) if _is_run(run))


def _below(folder: Path) -> list[Path]:
    try:
        return sorted(Path(each.path) for each in os.scandir(folder) if each.is_dir() and each.name[0] != ".")
    except OSError:
        return []


def _is_run(folder: Path) -> bool:
    return (folder / _META).is_file() and any((folder / name).is_dir() for name in ("metrics", "params", "tags"))


def _run(folder: Path, where: str, meta: dict[str, str], experiment: Path | None, report: ImportedRuns) -> SourceRun:
    def failed(name: str, why: str) -> None:
        if not name.startswith("artifacts/"):  # which are left out, all of them
            report.fail(f"{where}/{name}", why)

    files = list(walk(str(folder), failed))
    about = sum(file.size for file in files if file.name.startswith(("params/", "tags/")))
    if about > _ABOUT:
        raise CorruptBlobError(f"expected at most {_ABOUT:,} bytes of params and tags, found {about:,}")
    id = meta.get("run_id") or meta.get("run_uuid") or folder.name
    state = digest(sorted(meta.items()), [(file.name, file.size) for file in files])
    run = SourceRun(id, meta.get("run_name") or id, state, lambda run: _rows(run, files), where)
    tags: dict[str, str] = {}
    for file in files:
        part, _, name = file.name.partition("/")
        if part == "params" and name:
            run.config[name] = from_text(read_small(file.path))
        elif part == "tags" and name:
            tags[name] = read_small(file.path)
        elif part not in ("metrics", _META):
            run.leave("artifacts" if part == "artifacts" else f"files of {part:.40}")
    run.name = tags.get("mlflow.runName") or run.name
    run.about = {name: text for name, text in tags.items() if name.startswith("mlflow.")}
    run.tags = [f"{name}={text}" if text else name for name, text in tags.items() if name not in run.about]
    if experiment is not None and not (experiment / _META).is_symlink() and (experiment / _META).is_file():
        run.about["experiment"] = _yaml(experiment / _META).get("name", experiment.name)
    status = meta.get("status", "")
    run.status = _STATUS.get(status) or _WORDS.get(status, "ended")
    run.began, run.ended = _seconds(meta.get("start_time")), _seconds(meta.get("end_time"))
    return run


def _rows(run: SourceRun, files: list[File]) -> Iterator[Row]:
    """The metrics, those of the same step together."""
    metrics = [file for file in files if file.name.startswith("metrics/")]
    for kind in ("train", "system"):
        some = [file for file in metrics if file.name.startswith("metrics/system/") == (kind == "system")]
        for part in chunks(some, _TOGETHER):
            yield from _merged(part, kind)


def _merged(files: Sequence[File], kind: str) -> Iterator[Row]:
    with contextlib.ExitStack() as stack:
        named = [(file.name.partition("/")[2], stack.enter_context(contextlib.closing(_points(file))))
                 for file in files]  # fmt: skip
        ahead = [(*point, number) for number, (_, points) in enumerate(named) if (point := next(points, None))]
        heapq.heapify(ahead)
        rows: list[Row] = []  # of one step: a metric may have several values there
        seen: Counter[str] = Counter()
        while ahead:
            step, _, time, value, number = ahead[0]
            name, points = named[number]
            if rows and (rows[0].step != step or seen[name] >= _TOGETHER):
                yield from rows
                rows, seen = [], Counter()
            if seen[name] == len(rows):
                rows.append(Row(step, {}, time, kind))
            rows[seen[name]].values[name] = value
            seen[name] += 1
            point = next(points, None)
            if point is None:
                heapq.heappop(ahead)
            else:
                heapq.heapreplace(ahead, (*point, number))
        yield from rows


def _points(file: File) -> Generator[tuple[int, int, float, float]]:
    """Step, number of the line, time and value of each line."""
    with opened(file.path) as lines:
        number = 0
        while line := lines.readline(_LINE):
            number += 1
            parts = line.split()
            if not parts:
                continue
            try:
                step = int(parts[2]) if len(parts) > 2 else 0
                if not -(2**63) <= step < 2**63:
                    raise ValueError("a step of more than 64 bits")
                yield step, number, int(parts[0]) / 1000, float(parts[1])
            except (ValueError, IndexError, OverflowError) as error:
                raise CorruptBlobError(
                    f"{file.name}, line {number}: expected a time, a value and a step, found {line[:80]!r} ({error})"
                ) from None


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else int(text) / 1000
    except (ValueError, OverflowError):
        return None


def _yaml(path: Path) -> dict[str, str]:
    """The flat mapping of a meta.yaml: plain texts, quoted ones, and those that go on in the next line.

    Raises:
        StorageError: It cannot be read.
        CorruptBlobError: It is something else.
    """
    found: dict[str, str] = {}
    name = ""
    for line in read_small(path).splitlines():
        if line[:1] in (" ", "-") and name:
            found[name] = f"{found[name]} {line.strip()}"
            continue
        name, colon, text = line.partition(":")
        if not line.strip() or line.startswith(("#", "---")):
            continue
        if not colon:
            raise CorruptBlobError(f"{path.name}: expected lines `name: value`, found {line[:80]!r}")
        found[name] = text.strip()
    read = {name: _scalar(text) for name, text in found.items()}
    return {name: text for name, text in read.items() if text not in ("null", "~", "")}


def _scalar(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    if len(text) > 1 and text[0] == text[-1] == '"':
        with contextlib.suppress(ValueError):
            return str(json.loads(text))
        return text[1:-1]
    return text
