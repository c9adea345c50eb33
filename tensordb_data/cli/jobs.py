"""`tensordb jobs`: what is queued, what runs, and why something does not."""

from __future__ import annotations

import datetime as dt
import enum
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from bson import ObjectId, json_util
from bson.errors import InvalidId

from tensordb_data.api.database import TensorDB
from tensordb_data.api.job import Job
from tensordb_data.cli.common import Db, Json, Project, parsed_filter, parsed_object, parsed_sort, warehouse
from tensordb_data.cli.output import say
from tensordb_data.cli.tables import table
from tensordb_data.common.text_table import brief
from tensordb_data.errors import NotFoundError, QueryError
from tensordb_data.jobs.spec import QUERIES, JobLimits
from tensordb_data.query.query import Query

_OUTPUT = 20
_COLORS = {"done": "green", "dead": "red", "running": "cyan", "cancelled": "yellow"}
Id = Annotated[str, typer.Argument(help="The job's id.")]

jobs = typer.Typer(help="List, show, push, cancel and retry jobs.", no_args_is_help=True)


class Status(str, enum.Enum):
    """Where a job is."""

    waiting = "waiting"
    ready = "ready"
    running = "running"
    done = "done"
    dead = "dead"
    cancelled = "cancelled"


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.add_typer(jobs, name="jobs")


@jobs.command("list")
def list_(
    filter: Annotated[str, typer.Argument(help='A filter in JSON, such as \'{"tags": "sweep"}\'.')] = "{}",
    status: Annotated[Status | None, typer.Option(help="Only these.")] = None,
    sort: Annotated[str, typer.Option(help="A field; -field for descending order.")] = "-created",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """List jobs, the newest first.

    Example: tensordb jobs list '{"tags": "sweep"}' --sort -result.acc
    """
    with warehouse(db, project) as opened:
        wanted = parsed_filter(filter) | ({} if status is None else {"status": status.value})
        found = opened.jobs.find(wanted, sort=parsed_sort([sort]), limit=limit).all()
        if as_json:
            _print_json(found)
        else:
            table(list(map(_row, found)), _COLORS)
            say(f"{len(found)} job{'' if len(found) == 1 else 's'}")


@jobs.command()
def show(id: Id, as_json: Json = False, db: Db = None, project: Project = None) -> None:
    """Show a job: why it is where it is, its history, its last output.

    Example: tensordb jobs show 6b05afd5e3eb8e80cc24b60d
    """
    with warehouse(db, project) as opened:
        job = _job(opened, id)
        if as_json:
            _print_json([job], explanation=job.explain())
            return
        say(f"job {job.id} ({job.get('kind')}, {job.get('entry', 'script')})\n{job.explain()}")
        for name in ("args", *QUERIES, "requires", "result", "tags"):
            if job.get(name):
                say(f"{name}: {json_util.dumps(job[name])}")
        history = job.get("events")
        for event in history if isinstance(history, list) else ():
            say(_event(event))
        rows = opened.logs.find({"run": job.run, "kind": "output"}, sort=[("_id", -1)], limit=_OUTPUT).all()
        for row in reversed(rows):
            say(f"| {row.get('text')}")


@jobs.command()
def push(
    kind: Annotated[str, typer.Argument(help="What sort of work it is.")],
    entry: Annotated[str | None, typer.Option(help="The function, mypkg.jobs:train.")] = None,
    script: Annotated[
        Path | None, typer.Option(help="In its place, a file with a program, for workers with --allow-scripts.")
    ] = None,
    args: Annotated[str, typer.Option(help="Its arguments, a JSON object.")] = "{}",
    data: Annotated[str | None, typer.Option(help="A filter in JSON: the samples it is given.")] = None,
    params: Annotated[str | None, typer.Option(help="A filter in JSON: the parameters it is given.")] = None,
    architecture: Annotated[str | None, typer.Option(help="A filter in JSON: the architecture it is given.")] = None,
    priority: Annotated[int, typer.Option(help="Higher ones are claimed first.")] = 0,
    requires: Annotated[str, typer.Option(help='What a worker must have, {"gpu": 1} say.')] = "{}",
    max_attempts: Annotated[int, typer.Option(help="How often it may be begun.")] = 3,
    backoff: Annotated[float, typer.Option(help="Seconds before the second attempt, doubled each time.")] = 5,
    time_limit: Annotated[float | None, typer.Option(help="Seconds after which a worker stops an attempt.")] = None,
    start: Annotated[
        str | None, typer.Option(help="Not before: so many seconds from now, or a time, 2030-01-31T08:00+01:00.")
    ] = None,
    after: Annotated[list[str] | None, typer.Option(help="A job that must be done first. Repeatable.")] = None,
    after_any: Annotated[
        list[str] | None, typer.Option(help="A job that must have ended first, in whatever way. Repeatable.")
    ] = None,
    unique: Annotated[str | None, typer.Option(help="A key that only one active job may have.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag. Repeatable.")] = None,
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """Queue a job, and print its id.

    Example: tensordb jobs push train --entry mypkg.jobs:train --args '{"lr": 0.01}' --data '{"split": "train"}'
    """
    with warehouse(db, project, new=True) as opened:
        given = {"data": data, "params": params, "architecture": architecture}
        queries: dict[str, Any] = {
            name: Query(QUERIES[name], parsed_filter(text)) for name, text in given.items() if text is not None
        }
        limits = JobLimits(time_limit=time_limit, max_attempts=max_attempts, backoff=backoff)
        job = opened.jobs.push(
            kind, entry=entry, script=None if script is None else _program(script),
            args=parsed_object("--args", args, '{"lr": 0.01}'), **queries,
            requires=parsed_object("--requires", requires, '{"gpu": 1}'), priority=priority,
            limits=limits, start=None if start is None else _start(start),
            after=[_id(text) for text in after or ()], after_any=[_id(text) for text in after_any or ()],
            unique=unique, tags=tag or (),
        )  # fmt: skip
        if as_json:
            _print_json([job])
        else:
            say(str(job.id))


@jobs.command()
def cancel(id: Id, db: Db = None, project: Project = None) -> None:
    """Cancel a job; one that runs is asked to end. Exit status 1 when it has ended already.

    Example: tensordb jobs cancel 6b05afd5e3eb8e80cc24b60d
    """
    with warehouse(db, project) as opened:
        job = _job(opened, id)
        cancelled = job.cancel()
        say(f"job {job.id}: {job.explain()}")
    if not cancelled:
        raise typer.Exit(1)


@jobs.command()
def retry(id: Id, db: Db = None, project: Project = None) -> None:
    """Begin a dead or cancelled job again, with all its attempts.

    Example: tensordb jobs retry 6b05afd5e3eb8e80cc24b60d
    """
    with warehouse(db, project) as opened:
        job = _job(opened, id)
        job.retry()
        say(f"job {job.id}: {job.explain()}")


def _program(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError) as error:
        raise QueryError(f"--script is a file with a Python program; {path} cannot be read: {error}") from None


def _start(text: str) -> dt.datetime | float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return dt.datetime.fromisoformat(text.removesuffix("Z") + "+00:00" * text.endswith("Z"))
    except ValueError:
        raise QueryError(
            f"--start is a number of seconds, or a time with its zone, 2030-01-31T08:00+01:00 say; found {text!r}"
        ) from None


def _id(text: str) -> ObjectId:
    try:
        return ObjectId(text)
    except InvalidId:
        raise QueryError(f"a job is named by its id, 24 hexadecimal digits; found {text!r}") from None


def _job(db: TensorDB, text: str) -> Job:
    found = db.jobs.find({"_id": _id(text)}).head(1)
    if not found:
        raise NotFoundError(f"there is no job {text} in project {db.project!r}; `tensordb jobs list` shows the others")
    return found[0]


def _print_json(found: Iterable[Job], **more: Any) -> None:
    for job in found:
        text = json_util.dumps({**job, **more}, json_options=json_util.RELAXED_JSON_OPTIONS)
        say(json.dumps(json.loads(text)))


def _row(job: Job) -> dict[str, Any]:
    """The row of a job, also of one that another tool has written."""
    get = job.get
    reason = str(get("reason") or "").strip().splitlines()[-1:]
    progress = get("progress")
    return {
        "id": str(job.id), "kind": get("kind"), "status": get("status"),
        "attempt": f"{brief(get('attempts'))}/{brief(get('max_attempts'))}",
        "progress": f"{progress:.0%}" if isinstance(progress, float) else progress, "args": get("args"),
        "result or reason": brief(get("result")) if get("status") == "done" else " ".join(reason),
        "what": get("entry", "script"), "worker": get("worker"), "tags": get("tags"),
    }  # fmt: skip


def _event(event: Any) -> str:
    if not isinstance(event, Mapping):
        return brief(event)
    at = event.get("at")
    rest = {name: value for name, value in event.items() if name not in ("at", "event", "reason")}
    details = " ".join(f"{name}={value}" for name, value in rest.items())
    return f"{f'{at:%Y-%m-%d %H:%M:%S}' if isinstance(at, dt.datetime) else brief(at)}  {event.get('event')}  {details}"
