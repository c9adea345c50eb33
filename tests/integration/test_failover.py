"""A replica set loses its primary in three ways, while jobs are pushed and run and parameter sets saved and scored.

Owners have short leases, so that an outage outlasts some of them: what they write afterwards, to the new primary or to
one that does not know yet that it is none, must count for nothing once another has the job.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bson import ObjectId
from pymongo.collection import Collection
from pymongo.errors import AutoReconnect
from pymongo.write_concern import WriteConcern

from tensordb_data import JobLimits, TensorDB
from tensordb_data.continuous import Deployer, Evaluator, load_deployed
from tensordb_data.errors import ClaimLostError, NotFoundError
from tests.integration.job_runner.test_worker import until
from tests.long.account import account_for
from tests.long.chaos import changes, wrong
from tests.mongod import Mongod, ReplicaSet, started

LEASE = 1.5
OPEN = {"kind": {"$in": ["quick", "slow"]}, "status": {"$ne": "done"}}
UNSCORED = {"acc": {"$exists": False}}


class Thread(threading.Thread):
    """With a connection of its own, until it is told to end; what it raises is raised by `end`."""

    def __init__(self, uri: str, blobs: str, work: Callable[[TensorDB, threading.Event], None]) -> None:
        super().__init__(daemon=True)
        self._given, self._work = (uri, blobs), work
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        uri, blobs = self._given
        try:
            with TensorDB(uri, blobs=blobs) as db:
                self._work(db, self._ended)
        except BaseException as error:
            self._error = error

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        self._ended.set()
        self.join(60)
        self.check()
        assert not self.is_alive()


class Story:
    """What those who took part believe."""

    def __init__(self, models: Path) -> None:
        self.models = models
        self.accepted: dict[ObjectId, list[Any]] = {}
        self.refused: Counter[ObjectId] = Counter()
        self.pushed: list[ObjectId] = []
        self.saved: list[ObjectId] = []

    def owner(self, db: TensorDB, ended: threading.Event) -> None:
        """Does jobs."""
        while not ended.is_set():
            job = db.jobs.claim(worker="owner", kinds=["quick"], lease=LEASE)
            if job is None:
                ended.wait(0.05)
                continue
            try:
                job.heartbeat(0.5)
                result = {"number": job["args"]["number"], "attempt": job["attempts"]}
                job.done(result)
                self.accepted.setdefault(job.id, []).append(result)
            except ClaimLostError:
                self.refused[job.id] += 1

    def pusher(self, db: TensorDB, ended: threading.Event) -> None:
        """Makes jobs and parameter sets, also without a primary, and no more than the others can keep up with."""
        open_, unscored = db.jobs.find(OPEN), db.params.find(UNSCORED)
        while not ended.wait(0.05):
            if open_.count() + unscored.count() > 20:
                continue
            number = len(self.pushed)
            args, after = {"number": number}, self.pushed[-1:] if number % 5 == 4 else []
            limits = JobLimits(backoff=0, max_attempts=1000)
            job = db.jobs.push("quick", entry="a:b", args=args, limits=limits, after=after)
            self.pushed.append(job.id)
            if number % 5 == 0:
                self.saved.append(db.params.save({"w": np.full(10, float(number))}, run="r", step=number))

    def evaluator(self, db: TensorDB, ended: threading.Event) -> None:
        """Scores them."""
        sets, valid = db.params.find({"run": "r"}), db.data.find({"dataset": "valid"})
        scorer = Evaluator(db, sets, self.score, metric="acc", data=valid, lease=LEASE, attempts=1000)
        threading.Thread(target=lambda: (ended.wait(), scorer.stop()), daemon=True).start()
        scorer.run()

    def deployer(self, db: TensorDB, ended: threading.Event) -> None:
        """Serves the best of them."""
        with Deployer(db, db.params.find({"run": "r"}, sort=[("acc", -1)]), self.models) as deployer:
            threading.Thread(target=lambda: (ended.wait(), deployer.stop()), daemon=True).start()
            deployer.run()

    def serves_the_best(self) -> bool:
        try:
            found = load_deployed(self.models)
        except NotFoundError:  # nothing as yet
            return False
        assert found.state["w"][0] == found.about["acc"]
        return bool(found.about["acc"] == 5 * len(self.saved) - 5)

    @staticmethod
    def score(state: Any, batches: Any) -> float:
        assert sum(len(batch["number"]) for batch in batches) == 10
        return float(state["w"][0])


def killed(old: Mongod) -> Callable[[], None]:
    old.kill()

    def back() -> None:
        old.launch()
        old.await_secondary()

    return back


def stepped_down(old: Mongod) -> Callable[[], None]:
    old.ask("replSetStepDown", 10, force=True)
    return old.await_secondary


def stopped(old: Mongod) -> Callable[[], None]:
    old.send(signal.SIGSTOP)

    def back() -> None:
        old.send(signal.SIGCONT)  # it goes on with what it was sent, as the primary that it believes to be
        old.await_secondary()

    return back


@pytest.mark.slow
def test_every_job_has_one_completion_whatever_becomes_of_the_primary(tmp_path: Path) -> None:
    blobs, story = f"file://{tmp_path}/blobs", Story(tmp_path / "models")
    with started(ReplicaSet(tmp_path)) as servers, TensorDB(servers.uri, blobs=blobs) as db, ExitStack() as stack:
        with db.data.writer("valid") as writer:
            writer.add_many(number=np.arange(10))
        since = db.database.command("ping")["operationTime"]
        entry = "tests.integration.workload:counted"
        given = [{"number": n, "seconds": 2} for n in range(4)]
        limits = JobLimits(backoff=0, max_attempts=1000)
        slow = [db.jobs.push("slow", entry=entry, args=args, limits=limits) for args in given]
        command = [sys.executable, "-m", "tensordb_data.cli.main", "worker", "--db", servers.uri, "--kinds", "slow"]
        options = ["--allow", "tests.integration.workload", "--lease", str(LEASE), "--until-empty"]
        (tmp_path / "blobs").mkdir(exist_ok=True)  # nothing may be there as yet
        opened = {**os.environ, "TENSORDB_ROOTS": blobs}
        worker = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=opened)
        stack.callback(worker.kill)
        # One that finds no server when it starts ends with an error; what is tested is one that is at work.
        until(lambda: db.jobs.find({"kind": "slow", "status": "running"}).count() or worker.poll() is not None)
        assert worker.poll() is None, worker.communicate()[1]
        busy = [Thread(servers.uri, blobs, work) for work in (*[story.owner] * 4, *[story.evaluator] * 2)]
        busy.append(Thread(servers.uri, blobs, story.deployer))
        pusher = Thread(servers.uri, blobs, story.pusher)
        for fault in (killed, stepped_down, stopped):
            count = len(story.accepted)
            until(lambda count=count: len(story.accepted) > count + 10)
            old = servers.primary()
            stale = _held(db)
            back = fault(old)
            servers.primary(besides=old)
            count = len(story.accepted)
            until(lambda count=count: len(story.accepted) > count + 5)
            back()
            _is_fenced_off(db, stale)
        pusher.end()
        _await_the_end(db, busy)
        until(story.serves_the_best)
        for thread in busy:
            thread.end()
        _, said = worker.communicate(timeout=60)
        assert worker.returncode == 0, said
        history = changes(db, since)
        found = db.jobs.find({"kind": {"$in": ["quick", "slow"]}}).all()
        assert wrong(found, len(story.pushed) + len(slow), history["jobs"]) == []
        assert {job.id for job in found} == {*story.pushed, *(job.id for job in slow)}
        # What was accepted stands, and nobody else was told that his was.
        quick = {job.id: [job["result"]] for job in found if job["kind"] == "quick"}
        assert story.accepted == quick
        scores = Counter(
            change["documentKey"]["_id"]
            for change in history["params"]
            if "acc" in change["updateDescription"]["updatedFields"]
        )
        assert scores == Counter(story.saved) and not db.params.find({"acc_error": {"$exists": True}}).count()
        assert all(one["acc"] == one["step"] for one in db.params.find({"run": "r"}))


@pytest.mark.slow
def test_nothing_is_lost_or_made_twice_whatever_becomes_of_the_primary(tmp_path: Path) -> None:
    with started(ReplicaSet(tmp_path)) as servers:

        def strike(fault: Callable[[Mongod], Callable[[], None]]) -> None:
            old = servers.primary()
            back = fault(old)
            servers.primary(besides=old)
            back()

        faults = [(fault.__name__, partial(strike, fault)) for fault in (stepped_down, killed, stopped)]
        assert account_for(servers.uri, f"file://{tmp_path}/blobs", faults) == []


def test_a_claim_that_only_a_deposed_primary_knew_of_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its write reaches no other member, and the answer is lost; whoever asks again is told what stands."""
    with started(ReplicaSet(tmp_path)) as servers, TensorDB(servers.uri, blobs=f"file://{tmp_path}/blobs") as db:
        job, leader = db.jobs.push("held", entry="a:b"), servers.primary()
        others = [member for member in servers.members if member is not leader]
        real, calls = Collection.find_one_and_update, []

        def failover() -> None:
            leader.kill()
            for member in others:
                member.send(signal.SIGCONT)

        def lost(self: Any, *args: Any, **options: Any) -> Any:
            calls.append(args)
            if len(calls) == 1:
                for member in others:
                    member.send(signal.SIGSTOP)
                real(self.with_options(write_concern=WriteConcern(1)), *args, **options)
                raise AutoReconnect("connection closed")
            if len(calls) == 2:
                threading.Timer(0.3, failover).start()
            return real(self, *args, **options)

        monkeypatch.setattr(Collection, "find_one_and_update", lost)
        mine = db.jobs.claim(worker="w", kinds=["held"], lease=60)
        if len(calls) < 3:
            failover()
        monkeypatch.undo()
        mine.heartbeat()
        assert (mine.id, job.refresh()["attempts"]) == (job.id, 1)


def test_a_sample_that_only_a_deposed_primary_knew_of_is_not_followed(tmp_path: Path) -> None:
    with started(ReplicaSet(tmp_path)) as servers, TensorDB(servers.uri, blobs=f"file://{tmp_path}/blobs") as db:
        with db.data.writer("d") as writer:
            writer.add_many(number=np.arange(3))
        leader, mongo = servers.primary(), db.database
        others = [member for member in servers.members if member is not leader]
        servers.forbid_elections()  # else the leader would step down about a second after the others are gone
        with mongo.client.start_session() as session:
            session.start_transaction(write_concern=WriteConcern(1))
            mongo["datasets"].update_one({"_id.d": "d"}, {"$inc": {"seq": 1}}, session=session)
            phantom = {"dataset": "d", "tags": [], "number": 99, "_tdb": {"p": "default", "s": 4, "b": {}}}
            mongo["data"].insert_one(phantom, session=session)
            for member in others:
                member.kill()
            session.commit_transaction()
        stream = db.data.find({"dataset": "d"}).stream(batch_size=1, follow=True)
        batches, seen = iter(stream), []
        seen += [next(batches)["number"][0] for _ in range(3)]
        reader = threading.Thread(target=lambda: seen.append(next(batches)["number"][0]))
        reader.start()
        reader.join(0.3)  # what it could see of it, it would have seen by now
        leader.kill()
        for member in others:
            member.launch()
        servers.elect(others[0])
        with db.data.writer("d") as writer:
            writer.add(number=3)
        reader.join(60)
        stream.close()
        assert seen == [0, 1, 2, 3]


def _await_the_end(db: TensorDB, busy: list[Thread]) -> None:
    """Return once all jobs are done and all sets scored; what cannot come to that is shown."""
    jobs, sets = db.jobs.find(OPEN), db.params.find(UNSCORED)
    left: list[Any] = []

    def ended() -> bool:
        for thread in busy:
            thread.check()
        left[:] = [*(dict(job) for job in jobs), *(dict(found) for found in sets)]
        return not left

    try:
        until(ended)
    except AssertionError:
        pytest.fail(f"these have no end: {left}")


def _held(db: TensorDB) -> Any:
    """A job of an owner who will be silent for longer than his lease."""
    db.jobs.push("held", entry="a:b", limits=JobLimits(backoff=0))
    return db.jobs.claim(worker="stale", kinds=["held"], lease=0.5)


def _is_fenced_off(db: TensorDB, stale: Any) -> None:
    """Another gets the job, and ends it; then the silent owner comes back with his result."""
    found: list[Any] = []
    until(lambda: (found.append(db.jobs.claim(worker="next", kinds=["held"], lease=60)), found[-1])[1])
    assert found[-1].id == stale.id
    with pytest.raises(ClaimLostError):
        stale.done("too late")
    found[-1].done("in time")
    assert (stale.status, stale["result"], stale["worker"]) == ("done", "in time", "next")
