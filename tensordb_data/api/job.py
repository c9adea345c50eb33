"""A job: for the program that has pushed it, and for the worker that has claimed it."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from bson import ObjectId
from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError

from tensordb_data.api.record import LinkedRecord
from tensordb_data.common.deprecation import renamed_to
from tensordb_data.errors import (
    ClaimLostError,
    DuplicateError,
    JobCancelledError,
    NotFoundError,
    QueryError,
    StateError,
)
from tensordb_data.jobs import transitions
from tensordb_data.jobs.recovery import followers, resolve_dependencies, revive_followers
from tensordb_data.jobs.result import storable
from tensordb_data.jobs.run_name import run_of_job
from tensordb_data.jobs.spec import QUERIES
from tensordb_data.mongo.claims import Claim, confirmed
from tensordb_data.mongo.retry import retry_while_unavailable
from tensordb_data.query.query import Query

if TYPE_CHECKING:
    from tensordb_data.api.logs import LogSelection
    from tensordb_data.api.protocol import Facade
    from tensordb_data.api.selection import Selection
    from tensordb_data.warehouse.documents.jobs import JobDocument


class Job(LinkedRecord):
    """One job. Its fields are as they were when it was read, or last changed through this object."""

    __slots__ = ("_claim", "_lease")

    collection = "jobs"

    def __init__(self, db: Facade, doc: Mapping[str, Any]) -> None:
        super().__init__(db, doc)
        self._claim: Claim | None = None
        self._lease = 0.0

    @property
    def status(self) -> str:
        """The status, read now: `"waiting"`, `"ready"`, `"running"`, `"done"`, `"dead"` or `"cancelled"`."""
        self.refresh()
        return str(self._doc["status"])

    @property
    def query(self) -> Query:
        """The query that names exactly this job."""
        return Query("jobs", {"_id": self.id})

    @property
    def run(self) -> str:
        """The name of the job's run in `db.logs`. A worker logs there what the job prints."""
        return run_of_job(self.id)

    @property
    def output(self) -> LogSelection:
        """What the job has printed under a worker, as rows with a `text`."""
        rows: LogSelection = self.db.logs.find({"run": self.run, "kind": "output"}, sort=[("step", 1), ("_id", 1)])
        return rows

    def selection(self, name: str) -> Selection[Any] | None:
        """The Selection `"data"`, `"architecture"` or `"params"` of the job; None if the job has no such query.

        Raises:
            QueryError: Another tool has written a query that is malformed, or of another collection.
        """
        text = self._doc.get(name)
        if text is None:
            return None
        query = Query.from_json(text)
        if query.collection != QUERIES[name]:
            raise QueryError(f"job {self.id}: {name!r} is a query of db.{QUERIES[name]}; found {query.brief}")
        selected: Selection[Any] = self.db.select(query)
        return selected

    def refresh(self) -> Job:
        """Read the job again.

        Raises:
            NotFoundError: The job was deleted.
        """
        found = retry_while_unavailable(lambda: self._mongo.find_one(self._named))
        if found is None:
            raise NotFoundError(f"job {self.id} was deleted")
        self._doc = found
        return self

    def explain(self) -> str:
        """A text that explains the status: what the job waits for, why no worker claims it, or how it ended."""
        from tensordb_data.jobs.explain import explain

        return explain(self._warehouse, cast("JobDocument", self.refresh()._doc))

    # By whoever has claimed it

    def heartbeat(self, progress: float | None = None) -> None:
        """Reports that the job is alive, and renews its lease.

        Args:
            progress: How much is done, from 0 to 1.

        Raises:
            JobCancelledError: The job was cancelled. Let this exception end it.
            ClaimLostError: The lease had run out and another worker has the job, or the job was deleted.
        """
        until = {"$add": ["$$NOW", round(self._lease * 1000)]}
        stages: transitions.Stages = [{"$set": {f"{transitions.CLAIM}.until": until}}]
        if progress is not None:
            ok = not isinstance(progress, bool) and isinstance(progress, (int, float)) and 0 <= progress <= 1
            if not ok or math.isnan(progress):
                raise QueryError(f"progress is a number from 0 to 1; found {progress!r:.200}")
            stages.append({"$set": {"progress": float(progress)}})
        self._doc = self._held().write(stages, status="running")
        if self._doc.get("cancel"):
            raise JobCancelledError(f"job {self.id} was cancelled: {self._doc.get('reason', 'no reason given')}")

    def done(self, result: Any = None) -> None:
        """Ends the job with its result. Jobs that waited for it become ready.

        Args:
            result: Plain data, such as `{"acc": 0.93}`, at most 4 MB. Scalars of NumPy, torch and TensorFlow become
                numbers, arrays lists, keys texts, and entities references. Large arrays are stored in one checkpoint of
                the run `job.run`; in their place is `{"collection": "params", "id": ..., "name": ...}`. What cannot
                be stored is left out; the field `left_out` of the job names it.

        Raises:
            ClaimLostError: Another worker has the job, or it was deleted. The result is dropped.
        """
        self._end(transitions.done(*storable(result, self._keep)))

    def _keep(self, arrays: dict[str, Any]) -> ObjectId:
        """Arrays of the result as a checkpoint."""
        id: ObjectId = self.db.params.save(arrays, run=self.run, tags=["result"])
        return id

    def fail(self, error: BaseException | str, *, retry: bool = True) -> None:
        """Ends this attempt as failed. The job is ready again after a while, or dead if it has no attempts left.

        Args:
            error: What went wrong. It is kept as the `reason`.
            retry: Whether another attempt may help.

        Raises:
            ClaimLostError: Another worker has the job, or it was deleted.
            QueryError: `error` is neither an exception nor a text.
        """
        text = "".join(traceback.format_exception(error)) if isinstance(error, BaseException) else error
        self._end(transitions.retry_or_give_up("failed", transitions.literal(self._reason(text)), again=retry))

    def release(self) -> None:
        """Gives the job back to the queue, ready for other workers. The attempt does not count.

        Raises:
            ClaimLostError: Another worker has the job, or it was deleted.
        """
        self._end(transitions.released())

    @renamed_to("release")
    def hand_back(self) -> None:
        """The old name of `release`."""
        self.release()

    # By anybody

    def cancel(self, reason: str = "cancelled by hand") -> bool:
        """Cancels the job. The next heartbeat of a running job raises, and its worker stops it if it does not end.

        Args:
            reason: Why, for people to read.

        Returns:
            Whether the job was cancelled; False if it had ended already.

        Raises:
            QueryError: The reason is not a text.
        """
        reason = self._reason(reason)
        if self._claim is not None and self._claim.document["_id"] == self.id and self._doc.get("cancel"):
            self._end(transitions.cancelled_by_owner())
            return True
        open_ = {**self._named, "status": {"$in": list(transitions.OPEN)}}
        found = retry_while_unavailable(lambda: self._change(open_, transitions.cancelled(reason)))
        if found is None:
            self.refresh()
            return False
        self._doc = found
        if found["status"] == "cancelled":
            resolve_dependencies(self._warehouse, followers(self.id))
        return True

    def retry(self) -> None:
        """Begins a dead or cancelled job again, with all its attempts.

        The jobs that were cancelled because they waited for it wait again.

        Raises:
            StateError: The job is neither dead nor cancelled.
            DuplicateError: Another job with its unique key is active.
        """
        try:
            found = self._change({**self._named, "status": {"$in": ["dead", "cancelled"]}}, transitions.retried())
        except DuplicateKeyError:
            key = self._doc.get("unique")
            raise DuplicateError(f"job {self.id}: another job with the key {key!r} is active") from None
        if found is None:
            raise StateError(f"job {self.id} is {self.status}; only one that is dead or cancelled can be retried")
        self._doc = found
        if found["status"] == "waiting":
            resolve_dependencies(self._warehouse, {"_id": self.id})
            self.refresh()
        revive_followers(self._warehouse, self.id)

    def _reason(self, text: object) -> str:
        """A reason in the form in which it is stored: without passwords, valid, and not too long."""
        if not isinstance(text, str):
            raise QueryError(f"job {self.id}: a reason is a text (or an exception, for fail); found {text!r:.200}")
        text = self._warehouse.address.redact(text).encode(errors="replace").decode().replace("\0", " ")
        return transitions.shortened(text.strip() or "no reason given")

    @property
    def _named(self) -> dict[str, Any]:
        return {"_id": self.id, "_tdb.p": self._warehouse.project}

    @property
    def _mongo(self) -> Any:
        return self._warehouse.index["jobs"]

    def _change(self, filter: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> Any:
        return self._mongo.find_one_and_update(filter, stages, return_document=ReturnDocument.AFTER)

    def _held(self) -> Claim:
        if self._claim is None:
            raise StateError(f"job {self.id} was not claimed here; db.jobs.claim(worker=...) returns one that is")
        return self._claim

    def _bound(self, claim: Claim, lease: float) -> Job:
        self._claim, self._lease = claim, lease
        return self

    def _is_held(self) -> bool:
        """Whether the claim made here stands, as far as was read."""
        return bool(self._doc["_tdb"].get("claim", {}).get("token") == self._held().token)

    def _has_ended_here(self) -> bool:
        """Whether the last who held it was this claim's owner, and has reported."""
        return self._doc["status"] != "running" and bool(self._doc["_tdb"].get("last") == self._held().token)

    def _end(self, stages: transitions.Stages) -> None:
        mark = ObjectId()
        try:
            self._doc = self._held().write(transitions.marked(stages, mark, self._held().token), status="running")
        except ClaimLostError as error:
            # An outage may have swallowed the answer to a write that took place.
            found = retry_while_unavailable(lambda: confirmed(self._mongo, {"_id": self.id, "_tdb.end": mark}))
            if found is None:
                raise self._told(error) from None
            self._doc = found
        if self._doc["status"] in transitions.ENDED:
            resolve_dependencies(self._warehouse, followers(self.id))

    def _told(self, error: ClaimLostError) -> Exception:
        """What has become of a job that this process no longer holds."""
        now = retry_while_unavailable(lambda: self._mongo.find_one(self._named), reads=True)
        if now is None or now["status"] == "running":
            return error
        return ClaimLostError(
            f"job {self.id} is {now['status']} and no longer held by {self._held()._owner!r}; what was to be written is"
            " dropped"
        )
