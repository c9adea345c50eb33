"""Jobs: work that is queued in the warehouse, and done by workers on any number of machines."""

from __future__ import annotations

import datetime as dt
import math
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bson import ObjectId
from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError

from tensordb_data.api.collection import Collection
from tensordb_data.api.job import Job
from tensordb_data.common.deprecation import Grouped, moved_options, renamed_options
from tensordb_data.common.listing import Listing
from tensordb_data.common.options import suggesting
from tensordb_data.errors import DuplicateError, NotFoundError, QueryError, UnsupportedError
from tensordb_data.jobs import transitions
from tensordb_data.jobs.explain import explain_all
from tensordb_data.jobs.overview import WorkerInfo, counts, workers
from tensordb_data.jobs.recovery import requeue_lost, resolve_dependencies
from tensordb_data.jobs.shape import WELL_FORMED
from tensordb_data.jobs.spec import (
    JobLimits,
    JobOptions,
    JobSpec,
    LimitOptions,
    PushOptions,
    check_resources,
    kinds_list,
    limits_of,
    start_time,
)
from tensordb_data.mongo.claims import check_lease, claim
from tensordb_data.mongo.retry import retry_while_unavailable
from tensordb_data.search.index import search_index
from tensordb_data.warehouse.bound_query import BoundQuery

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tensordb_data.api.protocol import Facade

_RECOVER_SECONDS = 1.0  # seconds between looks for lost workers, by each process that claims
_TURNS = 4  # one of so many claims takes the job that has waited longest, if that is
_LONG = dt.timedelta(hours=1)
_BY_PRIORITY = [("priority", -1), ("due", 1), ("_id", 1)]
_BY_AGE = [("due", 1), ("_id", 1)]
_OWN = frozenset(("tags", "priority"))


class Jobs(Collection[Job]):
    """`db.jobs`: a queue of jobs. Any program pushes jobs. One worker at a time claims a job."""

    def __init__(self, db: Facade) -> None:
        super().__init__(db, "jobs", Job)
        self._recovered = -math.inf
        self._turn = random.randrange(_TURNS)  # of programs that claim once, one in so many looks for the oldest, too

    @moved_options(
        Grouped(
            "limits", JobLimits, {"backoff": "backoff", "time_limit": "time_limit"}, {"max_attempts": "max_attempts"}
        )
    )
    @suggesting(PushOptions)
    def push(
        self,
        kind: str | JobSpec,
        *,
        entry: str | None = None,
        args: Mapping[str, Any] | None = None,
        data: Any = None,
        architecture: Any = None,
        params: Any = None,
        priority: int = 0,
        requires: Mapping[str, float] | None = None,
        after: Sequence[Job | ObjectId] = (),
        unique: str | None = None,
        start: dt.datetime | float | None = None,
        tags: Sequence[str] = (),
        **more: Unpack[PushOptions],
    ) -> Job:
        """Queues a job.

        Args:
            kind: The kind of work. Workers choose jobs by their kind. Or a whole `JobSpec`, and nothing else.
            entry: The function to call, `"mypkg.jobs:train"`. It gets `args` as keyword arguments; `data`,
                `architecture` and `params` as Selections, if they are given here; and `job` and `db`, if it has
                parameters of these names. It returns the result.
            args: Plain data, at most 4 MB.
            data: The query of the samples.
            architecture: The query of the architecture.
            params: The query of the parameters, or a parameter set.
            priority: Jobs with higher priority are claimed first. Of equal ones, the oldest is first. One claim of four
                takes the job that has waited longest, if that is for more than an hour.
            requires: The resources that a worker must have at least: `{"gpu": 1, "memory_gb": 16}`.
            after: Jobs that must be done first. If one of them is dead, cancelled or deleted, this job is cancelled;
                a `retry` of that job lets this one wait again.
            unique: A key. Only one active job at a time may have it. A job is active until it has ended.
            start: The job starts at this time (with a time zone) at the earliest, or so many seconds from now.
            tags: Tags of the job.
            more: `limits=JobLimits(...)`, how long and how often it may be tried; `max_attempts=` by itself;
                `after_any=`, jobs that must have ended first, in whatever way; and `script=`, a program in place of
                `entry`, see `push_script`.

        Returns:
            The job.

        Raises:
            QueryError: An argument is malformed, or contradicts another one.
            TypeError: There is no such option; the message names the nearest one.
            NotFoundError: A job in `after` or `after_any` does not exist. So these cannot lead in a circle: a job waits
                only for jobs that existed before it.
            DuplicateError: A job with this unique key is active.
        """
        given = {
            "entry": entry, "script": more.get("script"), "args": args, "data": data, "architecture": architecture,
            "params": params, "priority": priority, "requires": requires, "after": after, "unique": unique,
            "start": start, "tags": tags, "after_any": more.get("after_any", ()),
        }  # fmt: skip
        if isinstance(kind, JobSpec):
            for name, value in {**given, **more}.items():
                if value is not None and value not in (0, ()):
                    raise QueryError(f"{name}= is given beside a JobSpec: say dataclasses.replace(spec, {name}=...)")
            return self._push(kind)
        return self._push(JobSpec.spelled({"kind": kind, **given, "limits": limits_of(more)}, {}))

    @suggesting(JobOptions)
    def push_script(self, kind: str, text: str, **options: Unpack[JobOptions]) -> Job:
        """Queues a job that brings its own program. Only workers that allow scripts run it.

        Args:
            kind: The kind of work.
            text: The program, in Python. It finds `args`, the Selections, `job` and `db` as variables, each argument
                under its name, and may set `result`.
            options: As for `push`: `args`, `data`, `priority`, `limits`, … .

        Returns:
            The job.

        Raises:
            QueryError: An argument is malformed, or contradicts another one.
            NotFoundError, DuplicateError: As for `push`.
        """
        given = {name: value for name, value in options.items() if name not in LimitOptions.__annotations__}
        spec = {"kind": kind, "script": text, **given, "limits": limits_of(options)}
        return self._push(JobSpec.spelled(spec, {"script": "text="}))

    def _push(self, spec: JobSpec) -> Job:
        if not self._warehouse.index.is_server:
            raise UnsupportedError("mongomock has no server time; jobs need a real server")
        document, unique = spec.document(self._warehouse.project), spec.unique
        stages = transitions.pushed(document, start_time(spec.start))
        search_index(self._warehouse, self.name).add_entities([document])
        mongo = self._warehouse.index["jobs"]
        wanted = [*document.get("after", ()), *document.get("after_any", ())]
        if wanted:
            there = set(mongo.distinct("_id", {"_id": {"$in": wanted}, "_tdb.p": self._warehouse.project}))
            missing = [id for id in wanted if id not in there]
            if missing:
                raise NotFoundError(
                    f"after= or after_any=: there is no job {missing[0]} in project {self._warehouse.project!r}"
                )

        def insert() -> Any:
            # Where it is there already, an earlier attempt arrived and its answer did not.
            new = {"_id": document["_id"], "_tdb": None}
            try:
                return mongo.find_one_and_update(new, stages, upsert=True, return_document=ReturnDocument.AFTER)
            except DuplicateKeyError:
                found = mongo.find_one({"_id": document["_id"]})
                if found is None:
                    raise
                return found

        try:
            job = Job(self.db, retry_while_unavailable(insert))
        except DuplicateKeyError:
            other = mongo.find_one({"_tdb.p": self._warehouse.project, "_tdb.key": unique}, {"status": 1})
            which = f"job {other['_id']} is {other['status']}" if other else "it has ended meanwhile; push again"
            raise DuplicateError(f"a job with the unique key {unique!r} is active: {which}") from None
        if wanted:
            resolve_dependencies(self._warehouse, {"_id": job.id})
            job.refresh()
        return job

    @renamed_options(has="resources")
    def claim(
        self,
        *,
        worker: str,
        kinds: Sequence[str] | None = None,
        lease: float = 60.0,
        resources: Mapping[str, float] | None = None,
    ) -> Job | None:
        """Claims the first job that is ready, in one atomic step. No other worker gets it while the lease lasts.

        Args:
            worker: The worker's name, for people. Two workers may have the same name.
            kinds: The kinds of jobs to claim; None for all.
            lease: Seconds for which the job belongs to this worker. `job.heartbeat()` renews the lease. When it has run
                out, the job is ready again for others, or dead if it has no attempts left.
            resources: What the worker has, `{"gpu": 1, "memory_gb": 64}`. Jobs that require more are not claimed.

        Returns:
            The job; None when there is nothing to do.

        Raises:
            QueryError: An argument is malformed.
            ConnectError: The server went away and did not come back.
        """
        return self._claim(worker, kinds_list(kinds), lease, check_resources("resources", resources), {})

    def _claim(
        self, worker: str, kinds: list[str] | None, lease: float, has: Mapping[str, float], more: Mapping[str, Any]
    ) -> Job | None:
        check_lease(lease)
        self._recover(_RECOVER_SECONDS)
        mongo = self._warehouse.index["jobs"]
        while True:
            chosen = kinds
            if chosen is None:  # the index has the kinds before the order of claims
                chosen = retry_while_unavailable(
                    lambda: mongo.distinct("kind", {"_tdb.p": self._warehouse.project, "status": "ready"})
                )
            for aged, order in self._orders() if chosen else ():
                found = claim(
                    mongo, {**self._claimable(chosen, has), **aged, **more}, path=transitions.CLAIM, owner=worker,
                    lease=lease, sort=order, stages=transitions.claimed(worker),
                )  # fmt: skip
                if found is not None:
                    return Job(self.db, found.document)._bound(found, float(lease))
            if not self._recover(0.0):
                return None

    def _orders(self) -> Iterator[tuple[dict[str, Any], list[tuple[str, int]]]]:
        """Which jobs to claim, and in which order. A job of low priority gets its turn under a flow of higher ones."""
        self._turn = (self._turn + 1) % _TURNS
        if self._turn == 0:
            now = retry_while_unavailable(lambda: self._warehouse.index.database.command("hello")["localTime"])
            yield {"due": {"$lte": now - _LONG}}, _BY_AGE
        yield {}, _BY_PRIORITY

    def _claimable(self, kinds: Sequence[str], has: Mapping[str, float]) -> dict[str, Any]:
        """The filter of jobs that a worker with these resources may claim now."""
        return {
            "_tdb.p": self._warehouse.project,
            "status": "ready",
            "kind": {"$in": list(kinds)},
            **within(has),
            **WELL_FORMED,
            "$expr": {"$lte": ["$due", "$$NOW"]},
        }

    def _recover(self, every: float) -> bool:
        """Requeue jobs of lost workers and resolve dependencies, if the last time was `every` seconds ago or more.

        Returns:
            Whether anything changed.
        """
        now = time.monotonic()
        if now - self._recovered < every:
            return False
        self._recovered = now
        freed = requeue_lost(self._warehouse)
        return bool(resolve_dependencies(self._warehouse, {}) + freed)

    def counts(self) -> dict[str, int]:
        """How many jobs have each status: `{"waiting": 0, "ready": 3, "running": 1, ...}`."""
        return counts(self._warehouse)

    def workers(self) -> Listing[WorkerInfo]:
        """The workers of the project that are alive; a table when it is printed."""
        return workers(self._warehouse)

    def explain(self, jobs: Iterable[Job | ObjectId]) -> list[str]:
        """A text for each of some jobs that explains its status, as `Job.explain`; all at once is much faster.

        Raises:
            QueryError: One of them is no job, nor the id of one.
        """
        ids = [job.id if isinstance(job, Job) else job for job in jobs]
        for id in ids:
            if not isinstance(id, ObjectId):
                raise QueryError(f"explain takes jobs, or their ids; found {id!r:.100}")
        return explain_all(self._warehouse, ids)

    def entities(self, docs: Sequence[Mapping[str, Any]]) -> list[Job]:
        return [Job(self.db, doc) for doc in docs]

    def write_selected(self, selection: BoundQuery, update: Mapping[str, Any] | None) -> int:
        roots = {path.split(".")[0] for changes in (update or {}).values() for path in changes}
        taken = sorted(roots - _OWN)
        if taken:
            raise QueryError(
                f"update: {taken[0]!r} of a job is not changed by hand, only {' and '.join(sorted(_OWN))}; its status"
                " changes by job.cancel() and job.retry(), and what it does and waits for is said when it is pushed"
            )
        return super().write_selected(selection, update)


def within(has: Mapping[str, float]) -> dict[str, Any]:
    """The filter of jobs that require no more than this."""
    return {
        "_tdb.needs": {"$not": {"$elemMatch": {"$nin": list(has)}}},
        **{f"requires.{name}": {"$not": {"$gt": amount}} for name, amount in has.items()},
    }
