"""The process in which a job runs. A worker starts it. It reads its ticket from its input, and reports to the job.

Its exit status means nothing: the worker looks at the job, and reports what the process has not reported.
"""

from __future__ import annotations

import fcntl
import inspect
import json
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensordb_data.api.job import Job
from tensordb_data.common.import_paths import Allow, resolve
from tensordb_data.errors import (
    ArchitectureError,
    ClaimLostError,
    JobCancelledError,
    NotAllowedError,
    NotFoundError,
    QueryError,
    TensorDBError,
)
from tensordb_data.job_runner.handoff import EXITED, claimed_job, open_database
from tensordb_data.jobs.spec import GIVEN, QUERIES
from tensordb_data.samples.changes.entries import note_job

_F_SETSIG = 10  # of Linux; the module fcntl has no name for it


class Refusal(Exception):
    """The job cannot be run as it is, however often it is tried."""


def main() -> None:
    """Runs one job."""
    ticket = json.load(sys.stdin)
    die_with(int(sys.argv[1]))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    pid = os.getpid()
    try:
        with open_database(ticket) as db:
            try:
                job = claimed_job(db, ticket)
                note_job(str(job.id))
                _report(job, ticket, pid)
            except (ClaimLostError, NotFoundError) as error:
                sys.stderr.write(f"tensordb: {error}\n")
    except SystemExit as end:
        sys.exit(EXITED if end.code in (None, 0) else end.code)


def die_with(worker: int) -> None:
    """Has the kernel kill this process and all that it starts at the moment when the worker is gone.

    Args:
        worker: The reading end of a pipe of which only the worker has the other end.
    """
    if not sys.platform.startswith("linux"):
        return
    fcntl.fcntl(worker, fcntl.F_SETOWN, -os.getpgid(0))
    fcntl.fcntl(worker, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(worker, fcntl.F_SETFL, fcntl.fcntl(worker, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    try:
        gone = os.read(worker, 1) == b""  # before there was anybody to tell
    except BlockingIOError:
        gone = False
    if gone:
        os.killpg(0, signal.SIGKILL)


def _report(job: Job, ticket: dict[str, Any], pid: int) -> None:
    try:
        try:
            result = _run(job, ticket)
        finally:
            if os.getpid() != pid:  # a fork of the job came out of it too
                os._exit(0)
        job.done(result)
    except Refusal as error:
        job.fail(str(error), retry=False)
    except JobCancelledError:
        job.cancel()
    except ClaimLostError:
        raise
    except Exception as error:  # SystemExit and KeyboardInterrupt are signals at work: the worker knows why
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
            frames = frames.tb_next
        job.fail(error.with_traceback(frames))


def _run(job: Job, ticket: dict[str, Any]) -> Any:
    """Runs what the job names, if the worker may: the document may have changed since it was claimed."""
    if "script" not in job:
        return _entry(job, ticket["allow"])
    if not ticket["scripts"]:
        raise Refusal("this worker runs no stored scripts (--allow-scripts)")
    return _script(job)


def _entry(job: Job, allow: list[str]) -> Any:
    reference = str(job["entry"])
    try:
        entry = resolve(reference, Allow(allow))
    except (ArchitectureError, NotAllowedError) as error:
        raise Refusal(str(error)) from None
    except SyntaxError as error:
        raise Refusal(f"{reference!r} cannot be imported: {error}\n{error.text or ''}") from None
    arguments = _arguments(job)
    try:
        parameters = inspect.signature(entry).parameters
        arguments |= {name: value for name, value in _given(job).items() if name in parameters}
        inspect.signature(entry).bind(**arguments)
    except (TypeError, ValueError) as error:
        raise Refusal(f"{reference} does not take {', '.join(arguments) or 'no arguments'}: {error}") from None
    return _called(entry, arguments)


def _called(entry: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    return entry(**arguments)


def _script(job: Job) -> Any:
    with tempfile.TemporaryDirectory(prefix="tdbj") as folder:
        path = Path(folder) / f"{job.run}.py"
        path.write_text(job["script"])
        try:
            return runpy.run_path(str(path), {**_arguments(job), **_given(job)}, "__main__").get("result")
        except SyntaxError as error:
            raise Refusal(f"the script is no Python: {error}") from None


def _arguments(job: Job) -> dict[str, Any]:
    try:
        queries = {name: job.selection(name) for name in QUERIES if name in job}
    except QueryError as error:
        raise Refusal(str(error)) from None
    return {**job["args"], **queries}


def _given(job: Job) -> dict[str, Any]:
    return dict(zip(GIVEN, (job, job.db), strict=True))


if __name__ == "__main__":
    try:
        main()
    except TensorDBError as error:
        sys.exit(f"tensordb: {error}")
