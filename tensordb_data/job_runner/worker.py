"""Worker: claims jobs and runs each in a process of its own, until it is told to stop."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bson import ObjectId
from pymongo.errors import PyMongoError

from tensordb_data.api.job import Job
from tensordb_data.api.jobs import within
from tensordb_data.common.deprecation import Grouped, moved_options
from tensordb_data.common.options import suggesting
from tensordb_data.common.system.machine import cpus, memory
from tensordb_data.common.system.modules import require_linux
from tensordb_data.common.telemetry.measures import add
from tensordb_data.errors import ClaimLostError, ConnectError, JobCancelledError, QueryError, UnsupportedError
from tensordb_data.job_runner.handoff import job_ticket
from tensordb_data.job_runner.host_slots import HostSlots, Slot, visible_devices
from tensordb_data.job_runner.job_process import JobProcess
from tensordb_data.jobs import worker_registry
from tensordb_data.jobs.permissions import Permissions
from tensordb_data.jobs.shape import WELL_FORMED
from tensordb_data.jobs.spec import check_resources, kinds_list, seconds
from tensordb_data.jobs.transitions import OPEN
from tensordb_data.mongo.claims import check_lease, check_owner
from tensordb_data.mongo.retry import retry_while_unavailable

if TYPE_CHECKING:
    from tensordb_data.api.database import TensorDB

_POLL = 0.5  # seconds between looks for jobs while there are none
_LOOK = 0.25  # seconds between looks at what a running job was told
_REPORT = 10.0  # seconds between signs of life, at most


class Worker:
    """A worker for one project of a warehouse. It runs one job at a time; to run several at once, start more workers.

    A job runs in a process group of its own. The group is killed when this process ends, in whatever way. The output of
    the job goes to `db.logs`, run `job-<id>`, kind `"output"`. When the server is away for longer than the lease, the
    job is paused until the lease is renewed. So it never runs at the same time as its successor.

    Args:
        db: The warehouse, made with an address.
        kinds: The kinds of jobs to claim; None for all.
        may: What the worker may run: `Permissions(allow=["mypkg."])`.
        name: A name for people; by default host and process number.
        resources: What the worker has, for jobs with `requires`; by default the GPUs, memory and processors of this
            machine, which it shares with the other workers of this user on it. A job that requires GPUs sees those that
            it gets, in `CUDA_VISIBLE_DEVICES`, and no other job gets them meanwhile.
        lease: Seconds after which a job of a dead worker is given to another.
        grace: Seconds in which a cancelled job may end by itself, and seconds between SIGTERM and SIGKILL after that.
        on_event: Called with a line of text about each event.
    """

    @moved_options(
        Grouped("may", Permissions, {"allow": "allow", "allow_scripts": "scripts"}), has="resources", say="on_event"
    )
    @suggesting()
    def __init__(
        self,
        db: TensorDB,
        *,
        kinds: Sequence[str] | None = None,
        may: Permissions | None = None,
        name: str | None = None,
        resources: Mapping[str, float] | None = None,
        lease: float = 60.0,
        grace: float = 10.0,
        on_event: Callable[[str], None] = lambda line: None,
    ) -> None:
        may = Permissions() if may is None else may
        if not isinstance(may, Permissions):
            raise QueryError(f'may= is a Permissions(allow=["mypkg."]); found {may!r:.200}')
        require_linux("workers", "run them on a Linux machine that reaches the same warehouse", UnsupportedError)
        if db.warehouse.address.client is not None:
            raise UnsupportedError("jobs run in processes of their own, which connect by themselves: a worker needs a"
                                   " TensorDB with an address, and not with client=")  # fmt: skip
        self._db, self._kinds, self._allow, self._scripts = db, kinds_list(kinds), list(may.allow), may.scripts
        self.name = check_owner(name if name is not None else f"{socket.gethostname()}-{os.getpid()}")
        here = machine()
        self._has = here if resources is None else check_resources("resources", resources)
        self._slots = HostSlots(self._has, shared=resources is None, gpus=int(here["gpu"]))
        self._lease, self._grace, self._say = check_lease(lease), seconds("grace=", grace, zero=True), on_event
        self._id = ObjectId()
        self._job: Job | None = None
        self._heartbeat: _Heartbeat | None = None
        self._draining = threading.Event()
        self._stopping = False

    @property
    def draining(self) -> bool:
        """Whether the worker has been told to claim no more jobs."""
        return self._draining.is_set()

    def drain(self) -> None:
        """Finish the running job, and claim no other. May be called from a signal handler or another thread."""
        self._draining.set()

    def stop(self) -> None:
        """Stop the running job, give it back to the queue, and claim no other."""
        self._stopping = True
        self._draining.set()

    def run(self, *, until_empty: bool = False) -> int:
        """Runs jobs until `drain` or `stop` is called.

        Args:
            until_empty: End as soon as no job is left that this worker could claim.

        Returns:
            The number of jobs that it has run.
        """
        count = 0
        signs = threading.Thread(target=self._report_alive, name="tensordb-worker", daemon=True)
        ended = self._ended = threading.Event()
        signs.start()
        if self._slots.problem is not None:
            self._say(f"what other workers of this machine take of it is not known: {self._slots.problem}")
        try:
            while not self._draining.is_set():
                try:
                    free = self._slots.free()
                    job = self._db.jobs._claim(self.name, self._kinds, self._lease, free, self._runnable())
                    if job is None and until_empty and not self._left():
                        break
                except ConnectError as error:
                    self._say(str(error))
                    continue
                if job is None:
                    self._draining.wait(_POLL)
                    continue
                slot = self._slots.take(job["requires"])
                if slot is None:  # a job of another worker of this machine was faster
                    job.release()
                    continue
                count += 1
                try:
                    self._run(job, slot)
                except Exception as error:  # what another tool made of one job must not end the worker
                    self._say(f"job {job.id}: not reported, its lease will run out: {type(error).__name__}: {error}")
                finally:
                    slot.close()
        finally:
            ended.set()
            signs.join()
        return count

    # One job

    def _run(self, job: Job, slot: Slot) -> None:
        self._job = job
        what = job.get("entry", "script")
        self._say(f"job {job.id} ({job['kind']}, {what}): attempt {job['attempts']} of {job['max_attempts']}")
        heartbeat = _Heartbeat(job, self._lease)
        try:
            process = JobProcess(job, job_ticket(job, self._lease, self._allow, self._scripts), slot.devices)
            try:
                told = self._watch(job, process, heartbeat)
            finally:
                how = process.close()
            line = self._conclude(job, heartbeat, told, None if process.exited else how)
            ended = "lost" if heartbeat.lost else "stopped" if told == "stopped" else str(job.get("status"))
            add("tensordb.jobs", outcome=ended)
            self._say(line)  # who reads it finds it counted
        finally:
            heartbeat.close()
            self._job = None

    def _watch(self, job: Job, process: JobProcess, heartbeat: _Heartbeat) -> str:
        """Wait for the end of the process, and end it when that is due; returns why it was ended."""
        limit = time.monotonic() + _time_limit(job)
        end = _Ending(process, self._grace)
        paused = False
        while not process.ends_within(_LOOK):
            if heartbeat.lost:
                process.signal(signal.SIGKILL)
                end.told = "lost"
                continue
            if heartbeat.late() != paused:
                paused = not paused
                process.signal(signal.SIGSTOP if paused else signal.SIGCONT)
                self._say(f"job {job.id}: {'paused until the server is back' if paused else 'goes on'}")
            if heartbeat.cancelled:
                end.ask("cancelled", after=self._grace)
            if heartbeat.over:
                end.ask("over", after=self._grace)
            if time.monotonic() > limit:
                end.ask("time limit")
            if self._stopping:
                end.ask("stopped")
            end.proceed()
        return end.told

    def _conclude(self, job: Job, heartbeat: _Heartbeat, told: str, how: str | None) -> str:
        """Report how the job ended, if the process has not. It is done if it ended itself by sys.exit(0).

        Returns:
            A line about it.
        """
        heartbeat.close()
        limit = _time_limit(job)
        try:
            if heartbeat.lost or job.refresh()["status"] != "running" or not job._is_held():
                return f"job {job.id}: {job.status if not heartbeat.lost else 'lost to another worker, or deleted'}"
            if job.get("cancel"):
                job.cancel()
            elif told == "stopped":
                job.release()
            elif told == "time limit":
                job.fail(f"stopped after its time limit of {limit:g} s")
            else:
                job.done() if how is None else job.fail(how)
            return f"job {job.id}: {'handed back' if told == 'stopped' else job.status}"
        except (ClaimLostError, LookupError) as error:
            return str(error)
        except (ConnectError, PyMongoError) as error:
            return f"job {job.id}: not reported, its lease will run out: {error}"

    # What it may claim

    def _runnable(self) -> dict[str, Any]:
        """The filter of jobs that this worker may run, as far as their names tell."""
        ways: list[dict[str, Any]] = [{"script": {"$exists": True}}] if self._scripts else []
        for entry in self._allow:
            if ":" in entry:
                ways.append({"entry": entry})
            elif entry.endswith("."):
                ways.append({"entry": {"$regex": f"^{_escaped(entry[:-1])}[.:]"}})
            else:
                ways.append({"entry": {"$regex": f"^{_escaped(entry)}:"}})
        return {"$or": ways}

    def _left(self) -> bool:
        """Whether there is a job that this worker could still get."""
        kinds = {} if self._kinds is None else {"kind": {"$in": self._kinds}}
        filter = {"_tdb.p": self._db.project, "status": {"$in": list(OPEN)}, **kinds, **within(self._has)}
        wanted = {**filter, **self._runnable(), **WELL_FORMED}
        jobs = self._db.warehouse.index["jobs"]
        return retry_while_unavailable(lambda: jobs.find_one(wanted, {"_id": 1}), reads=True) is not None

    def _report_alive(self) -> None:
        every = min(_REPORT, self._lease / 3)
        while True:
            job = self._job
            fields = {
                "name": self.name, "host": socket.gethostname(), "pid": os.getpid(), "kinds": self._kinds,
                "allow": self._allow, "scripts": self._scripts, "has": self._has, "free": self._slots.free(),
                "job": None if job is None else str(job.id), "draining": self._draining.is_set(),
            }  # fmt: skip
            try:
                if self._ended.wait(0):
                    worker_registry.leave(self._db.warehouse, self._id)
                    return
                worker_registry.report(self._db.warehouse, self._id, 3 * every, fields)
            except (PyMongoError, ConnectError):
                if self._ended.is_set():
                    return
            self._ended.wait(every)


class _Heartbeat:
    """Renews the lease of a job from a thread."""

    def __init__(self, job: Job, lease: float) -> None:
        # A Job of its own: another thread uses that of the worker.
        self._job = Job(job.db, job._doc)._bound(job._held(), lease)
        self._lease = lease
        self._renewed = time.monotonic()
        self.cancelled = False
        self.lost = False
        self.over = False
        """Whether the process has reported how the job ended. What it does after that is in vain."""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tensordb-lease", daemon=True)
        self._thread.start()

    def late(self) -> bool:
        """Whether the lease may have run out, as far as this process knows."""
        return not self.over and time.monotonic() - self._renewed > self._lease

    def close(self) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(min(self._lease / 3, 1.0 if self.cancelled else _REPORT)):
            asked = time.monotonic()
            try:
                self._job.heartbeat()
            except JobCancelledError:
                self.cancelled = True
            except ClaimLostError:
                self.over = self._has_ended_here()
                self.lost = not self.over
                return
            except (ConnectError, PyMongoError):
                continue
            self._renewed = asked

    def _has_ended_here(self) -> bool:
        try:
            return self._job.refresh()._has_ended_here()
        except LookupError:
            return False
        except (ConnectError, PyMongoError):
            return True


class _Ending:
    """Ends a job: gives it time to end by itself, then sends SIGTERM, and SIGKILL after another wait."""

    def __init__(self, process: JobProcess, grace: float) -> None:
        self._process, self._grace = process, grace
        self.told = ""
        self._term = self._kill = float("inf")

    def ask(self, why: str, after: float = 0.0) -> None:
        if not self.told:
            self.told = why
            self._term = time.monotonic() + after

    def proceed(self) -> None:
        now = time.monotonic()
        if now >= self._kill:
            self._process.signal(signal.SIGKILL)
        elif now >= self._term:
            self._process.signal(signal.SIGTERM)
            self._process.signal(signal.SIGCONT)  # one that is paused hears nothing
            self._term, self._kill = float("inf"), now + self._grace


def machine() -> dict[str, float]:
    """What this machine has: `gpu`, `memory_gb` and `cpu`."""
    gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    if (visible := visible_devices()) is not None:
        gpus = min(gpus, len(visible))
    return {"gpu": gpus, "memory_gb": round((memory() or 0) / 2**30, 1), "cpu": cpus()}


def _time_limit(job: Job) -> float:
    return float(job.get("time_limit", "inf"))


def _escaped(entry: str) -> str:
    return entry.replace(".", "\\.")
