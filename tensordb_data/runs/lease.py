"""The lease of a run: one saver has it at a time, and each that gets it begins an attempt.

The lease is a claim on the document of the run (`mongo.claims`), of 20 seconds on the server's clock, which a thread
renews. It passes on when it was given back, when its process on this machine has ended, or when it has run out.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime as dt
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from bson import ObjectId
from pymongo.errors import OperationFailure, PyMongoError

from tensordb_data.common.system.fork import at_fork
from tensordb_data.common.system.process_identity import has_ended, process_identity
from tensordb_data.errors import ClaimLostError, ConnectError, NotFoundError, ReadOnlyError, RunHeldError
from tensordb_data.mongo.claims import Claim, claim
from tensordb_data.mongo.errors import UNAUTHORIZED
from tensordb_data.mongo.heartbeat import heartbeat_of, keep_renewing
from tensordb_data.mongo.retry import retry_while_unavailable
from tensordb_data.runs.attempts import with_changes
from tensordb_data.runs.documents import ATTEMPTS, LEASE, LEFT, attempts_of, make_run, named
from tensordb_data.runs.open_runs import note_closed, note_open

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

SECONDS = 20.0
"""For which a saver may be silent."""
_LOOKS = 0.5  # seconds between looks at a lease that somebody on another machine has
_PATIENCE = 5.0  # seconds for a server that is away when the lease is given back

_held: weakref.WeakValueDictionary[ObjectId, RunLease] = weakref.WeakValueDictionary()
"""The leases of this process, by the tokens of their claims."""
_taking = threading.Lock()
"""Held while a thread looks who has a run and takes it, so that no other finds a lease of this process half made."""

T = TypeVar("T")


@dataclass(frozen=True)
class Holder:
    """Who has the lease of a run, and the document of the run as it was then."""

    document: Mapping[str, Any]
    left: float
    """Seconds until the lease runs out, on the server's clock; not above 0 if it has."""

    @property
    def claim(self) -> Mapping[str, Any]:
        """The claim."""
        found: Mapping[str, Any] = self.document["_tdb"]["saver"]
        return found

    @property
    def ended(self) -> bool | None:
        """Whether its process has ended; None if that cannot be known here."""
        return has_ended(self.claim.get("process"))

    @property
    def is_here(self) -> bool:
        """Whether it is this process."""
        return self.claim.get("process") is not None and self.claim.get("process") == process_identity()

    def refusal(self, run: str) -> RunHeldError:
        """The error for another one who wants the lease."""
        since = self.claim.get("since")
        when = f"{since:%Y-%m-%d %H:%M:%S} UTC" if isinstance(since, dt.datetime) else "an unknown time"
        who = f"process {self.claim.get('pid')} on host {self.claim.get('host')!r}"
        if self.is_here:
            who = f"another saver of this process ({self.claim.get('pid')} on host {self.claim.get('host')!r})"
        return RunHeldError(
            f"run {run!r} is being saved by {who} since {when}: close that one, wait until it has ended, or use another"
            " run name. To only load its checkpoints, use db.params.find({...}) or a TensorDB with read_only=True"
        )


class RunLease:
    """The lease of a run, which this process has, and the attempt that began with it.

    Attributes:
        begun: Whether its saver has ended a step. One that has not gives way to another of the same process.
    """

    def __init__(self, warehouse: Warehouse, run: str, claimed: Claim) -> None:
        self._warehouse, self.run, self._claim = warehouse, run, claimed
        self.document: Mapping[str, Any] = claimed.document
        self.begun = False
        self._pid = os.getpid()
        self._ended = False
        self._heartbeat = heartbeat_of(claimed, SECONDS)
        _held[claimed.token] = self
        note_open(self, warehouse, run)
        self._at_exit: Callable[[], None] | None = _at_exit(self)

    @classmethod
    def take(
        cls,
        warehouse: Warehouse,
        run: str,
        *,
        code: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
    ) -> RunLease:
        """Take the lease of a run, and begin an attempt. This waits for the lease of another machine to run out.

        Args:
            warehouse: The warehouse.
            run: The run.
            code: What is known of the program, for the attempt.
            config: The configuration of the run; None to leave it as it is.
            tags: Tags of the run.

        Raises:
            RunHeldError: Somebody else has it.
            ReadOnlyError: The warehouse was opened with `read_only=True`.
            OperationFailure: The user of the server may not write runs.
        """
        make_run(warehouse, run, config, tags)
        began = {"id": ObjectId(), "code": dict(code or {})}
        return take_claim(warehouse, run, _begins(began), lambda claimed: cls(warehouse, run, claimed))

    @property
    def gone(self) -> bool:
        """Whether it was given back, or passed on within this process."""
        return self._ended

    @property
    def attempts(self) -> list[Mapping[str, Any]]:
        """The attempts of the run, the newest last."""
        return attempts_of(self.document)

    @property
    def attempt(self) -> Mapping[str, Any]:
        """The attempt of this saver, the last of the run."""
        found: Mapping[str, Any] = self.document["attempts"][-1]
        return found

    def check(self) -> None:
        """Find out whether the lease is still this saver's, without asking the server.

        Raises:
            RunHeldError: It is not.
        """
        if self._heartbeat.lost and not self._ended:
            raise self.lost()

    def lost(self) -> RunHeldError:
        """The error of a saver that was silent for too long."""
        found = None
        with contextlib.suppress(Exception):  # it says more, if it can
            found = holder(self._warehouse, self.run)
        if found is None:
            return RunHeldError(f"run {self.run!r} was deleted while it was saved here: this saver saves nothing more")
        who = f"process {found.claim.get('pid')} on host {found.claim.get('host')!r}"
        return RunHeldError(
            f"run {self.run!r}: this saver was silent for more than {SECONDS:g} s, and {who} has taken the run over. "
            "It saves nothing more: end this process"
        )

    def confirm(self, session: Any = None) -> None:
        """Within the transaction of a save, renew the lease.

        Raises:
            RunHeldError: It is another's, and the save must not take place.
        """
        try:
            self._claim.renew(SECONDS, session=session)
        except ClaimLostError:
            raise self.lost() from None

    def note(self, **changes: Any) -> None:
        """Change the attempt.

        Raises:
            RunHeldError: The lease is another's.
        """
        try:
            self.document = self._claim.write([with_changes({"$eq": ["$$this.id", self.attempt["id"]]}, changes)])
        except ClaimLostError:
            raise self.lost() from None

    def begin_again(self) -> None:
        """End the attempt, and begin another, under the same lease.

        Raises:
            RunHeldError: The lease is another's.
        """
        ended = with_changes({"$eq": ["$$this.state", "running"]}, {"state": "ended", "ended": "$$NOW"})
        began = _begins({"id": ObjectId(), "code": self.attempt.get("code", {})})
        try:
            self.document = self._claim.write([ended, *began])
        except ClaimLostError:
            raise self.lost() from None

    def end(self, state: str = "ended") -> None:
        """Give the lease back, and end the attempt. If the server is away, the lease runs out."""
        if self._ended or os.getpid() != self._pid:
            return
        self._ended = True
        note_closed(self)
        self._heartbeat.stop()
        self._give_back(state)

    def retire(self, done: Callable[[float], bool]) -> None:
        """Give the lease back from another thread. This does not wait.

        Args:
            done: Waits for what is still to be saved, so many seconds at most; returns whether it is.
        """
        if self._ended or os.getpid() != self._pid:
            return
        self._ended = True
        note_closed(self)

        def finish() -> None:
            with contextlib.suppress(ClaimLostError, ConnectError, PyMongoError):
                while not done(SECONDS / 3):
                    self._claim.renew(SECONDS)
            self._give_back("ended")

        self._heartbeat.stop_later(finish)

    def wait_if_retired(self) -> bool:
        """Whether the lease was given back, which this waits for."""
        if self._ended:
            self._heartbeat.stop()
        return self._ended

    def _give_back(self, state: str) -> None:
        if self._at_exit is not None:
            atexit.unregister(self._at_exit)
            self._at_exit = None
        _held.pop(self._claim.token, None)
        changes = {"state": state, "ended": "$$NOW"}
        with contextlib.suppress(ClaimLostError, ConnectError, PyMongoError):  # the client is closed, say
            self._claim.release([with_changes({"$eq": ["$$this.id", self.attempt["id"]]}, changes)], patience=_PATIENCE)


def holder(warehouse: Warehouse, run: str) -> Holder | None:
    """Who has the lease of a run, or had it last; None if nobody had, or there is no such run."""
    stages = [{"$match": named(warehouse, run)}, {"$set": {"left": LEFT}}]
    found = retry_while_unavailable(lambda: list(warehouse.index["runs"].aggregate(stages)), reads=True)
    if not found or found[0].get("left") is None:
        return None
    return Holder(found[0], float(found[0].pop("left")) / 1000)


def take_claim(warehouse: Warehouse, run: str, stages: Sequence[Mapping[str, Any]], then: Callable[[Claim], T]) -> T:
    """Claim a run that is there, as soon as nobody else has it.

    Args:
        warehouse: The warehouse.
        run: The run.
        stages: Further changes in the same step, as aggregation stages.
        then: Called with the claim, before anybody else in this process looks at it.

    Returns:
        What `then` returned.

    Raises:
        RunHeldError: Somebody has it, and lives.
        NotFoundError: It was deleted.
    """
    host, pid = socket.gethostname(), os.getpid()
    about = {"host": {"$literal": host}, "pid": pid, "process": {"$literal": process_identity()}}
    noted = {"$set": {f"{LEASE}.{name}": value for name, value in about.items()}}
    seen = None
    while True:
        with _taking:
            found = holder(warehouse, run)
            free = found is None or found.left <= 0 or _is_free(found)
            if found is not None and free is False:
                raise found.refusal(run)
            if free:
                if found is not None:
                    _bury(warehouse, found)
                scope, owner = named(warehouse, run), f"{host}-{pid}"
                runs = warehouse.index["runs"]
                claimed = claim(runs, scope, path=LEASE, owner=owner, lease=SECONDS, stages=[noted, *stages])
                if claimed is not None:
                    return then(claimed)
                if not runs.count_documents(scope, limit=1):
                    raise NotFoundError(f"run {run!r} was deleted just now: begin again")
                continue  # somebody was faster
        assert found is not None
        if seen is None:
            who = f"process {found.claim.get('pid')} on host {found.claim.get('host')!r}"
            _say(f"run {run!r} is held by {who}: waiting until its lease runs out, in {found.left:.0f} s unless it is "
                 "renewed")  # fmt: skip
            seen = found
        if (found.claim["token"], found.claim["until"]) != (seen.claim["token"], seen.claim["until"]):
            raise found.refusal(run)
        time.sleep(min(_LOOKS, found.left))


@contextlib.contextmanager
def delete_document(warehouse: Warehouse, run: str) -> Iterator[None]:
    """Hold a run, for the block in which all that it has is deleted; its document is deleted last.

    Raises:
        RunHeldError: It is being saved.
    """
    if not warehouse.index["runs"].count_documents(named(warehouse, run), limit=1):
        yield  # of version 0.1, or deleted by another
        return
    claimed = take_claim(warehouse, run, (), lambda claimed: claimed)
    with keep_renewing(claimed, SECONDS):
        yield
    mine = {"_id": claimed.id, f"{LEASE}.token": claimed.token}
    warehouse.index.write(lambda: warehouse.index["runs"].delete_one(mine))


def _is_free(found: Holder) -> bool | None:
    """Whether a lease that has not run out can be taken over; None to wait until it has."""
    if not found.is_here:
        return found.ended
    mine = _held.get(found.claim["token"])
    if mine is None or mine.wait_if_retired():  # of a program that this process has replaced, if it is not known
        return True
    if not mine.begun:
        mine.end()
        return True
    return False


def _bury(warehouse: Warehouse, found: Holder) -> None:
    """Note that the attempt of a holder was lost, and when it was last heard of, and free the run."""
    until = {"$min": ["$_tdb.saver.until", "$$NOW"]}
    running = {"$eq": ["$$this.state", "running"]}
    stages = [with_changes(running, {"state": "lost", "ended": until}), {"$set": {f"{LEASE}.until": until}}]
    mine = {"_id": found.document["_id"], f"{LEASE}.token": found.claim["token"]}
    warehouse.index.write(lambda: warehouse.index["runs"].update_one(mine, stages))


def _begins(attempt: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages that add an attempt."""
    new = {
        **{name: {"$literal": value} for name, value in attempt.items()},
        "began": "$$NOW", "ended": None, "state": "running", "host": {"$literal": socket.gethostname()},
        "pid": os.getpid(),
    }  # fmt: skip
    return [{"$set": {"attempts": {"$concatArrays": [ATTEMPTS, [new]]}}}]


def may_not_write(error: Exception) -> bool:
    """Whether an error says that this client only reads."""
    return isinstance(error, ReadOnlyError) or (isinstance(error, OperationFailure) and error.code == UNAUTHORIZED)


def _at_exit(lease: RunLease) -> Callable[[], None]:
    reference = weakref.ref(lease)

    def at_exit() -> None:
        if (found := reference()) is not None:
            found.wait_if_retired()
            found.end(final_state(None if hasattr(sys, "ps1") else getattr(sys, "last_value", None)))

    atexit.register(at_exit)
    return at_exit


def final_state(error: BaseException | None) -> str:
    """The state of an attempt that ends while this error is on its way. A signal or Ctrl-C is no failure."""
    return "failed" if isinstance(error, Exception) and not isinstance(error, StopIteration) else "ended"


def _after_fork() -> None:
    global _taking
    _taking = threading.Lock()  # another thread of the parent may have held it


at_fork(after_in_child=_after_fork)


def _say(text: str) -> None:
    sys.stderr.write(f"tensordb: {text}\n")
