"""Jobs: order, requirements, leases, retries, cancelling, dependencies, keys; and what odd input leads to."""

from __future__ import annotations

import datetime as dt
import math
import threading

import numpy as np
import pytest
from bson import ObjectId
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymongo.errors import AutoReconnect

from tensordb_data import JobLimits, TensorDB
from tensordb_data.errors import (
    ClaimLostError,
    DuplicateError,
    JobCancelledError,
    NotFoundError,
    QueryError,
    StateError,
    UnsupportedError,
)
from tensordb_data.jobs import worker_registry
from tensordb_data.jobs.transitions import KEPT_EVENTS

ENTRY = "mypkg.jobs:train"
EVENTS = ["claim", "expire", "fail", "done", "beat", "cancel"]


def push(db, **more):
    limits = more.pop("limits", None) or JobLimits(backoff=0, max_attempts=more.pop("max_attempts", 3))
    return db.jobs.push("train", entry=ENTRY, limits=limits, **more)


def expire(db, job):
    """Lets a lease run out, as time would."""
    late = {"$subtract": ["$$NOW", 1]}
    db.database["jobs"].update_one({"_id": job.id}, [{"$set": {"_tdb.claim.until": late}}])


def claim(db, worker="w1", **more):
    return db.jobs.claim(worker=worker, **{"kinds": ["train"], "lease": 60, **more})


def test_as_in_the_interface_by_example(db):
    with db.data.writer("d") as writer:
        writer.add_many(x=np.arange(10), split=["train"] * 10)
    id = db.params.save({"w": np.zeros(2)}, run="r")
    db.architectures.save("cnn", factory="json:loads")
    sel, best = db.data.find({"split": "train"}), db.params.find({"_id": id}).first()
    q_arch = db.architectures.find({"name": "cnn"}).query
    other = db.jobs.push("prepare", entry="mypkg.jobs:prepare")
    job = db.jobs.push(
        "train", entry=ENTRY, args={"lr": 0.01}, data=sel.query, architecture=q_arch, params=best.query, priority=5,
        requires={"gpu": 0}, max_attempts=3, after=[other], unique="cnn-lr0.01", tags=["sweep"],
    )  # fmt: skip
    assert (other.status, job.status) == ("ready", "waiting") and "waiting for job" in job.explain()
    assert claim(db) is None
    db.jobs.claim(worker="w2").done()
    mine = claim(db)
    assert (mine.id, mine.status, mine["args"]) == (job.id, "running", {"lr": 0.01})
    assert mine.selection("data").count() == 10 and mine.selection("architecture").first().name == "cnn"
    assert mine.selection("params").first().id == id and job.selection("data").query == sel.query
    mine.heartbeat(progress=0.4)
    assert job.refresh()["progress"] == 0.4 and "40% done" in job.explain()
    mine.done(result={"acc": np.float32(0.5)})
    assert job.status == "done" and job["result"] == {"acc": 0.5} and job.tags == ["sweep"]
    assert [event["event"] for event in job["events"]] == ["pushed", "ready", "claimed", "done"]
    assert "done by w1" in job.explain() and job.cancel() is False
    assert db.jobs.find({"result.acc": {"$gt": 0.1}}).first().id == job.id


def test_priority_then_age(db):
    for priority in (0, 5, -1, 5, 0):
        push(db, priority=priority)
    claimed = [claim(db) for _ in range(5)]
    assert [job["priority"] for job in claimed] == [5, 5, 0, 0, -1]
    assert claimed[0].id < claimed[1].id and claim(db) is None


def test_kinds_and_requirements(db):
    push(db, requires={"gpu": 1, "memory_gb": 16})
    db.jobs.push("évaluer $x", entry=ENTRY)
    for has in (None, {"gpu": 1}, {"gpu": 1, "memory_gb": 15.9}, {"memory_gb": 64}, {"gpu": 0, "memory_gb": 64}):
        assert claim(db, resources=has) is None
    assert claim(db, resources={"gpu": 2, "memory_gb": 16, "tpu": 1})["requires"] == {"gpu": 1, "memory_gb": 16}
    assert db.jobs.claim(worker="w", kinds=["évaluer $x", "no"])["kind"] == "évaluer $x"


def test_a_lost_worker_is_succeeded_and_writes_nothing(db):
    push(db, max_attempts=2)
    stale = claim(db, "slow")
    expire(db, stale)
    stale.heartbeat()  # late, but nobody has come
    expire(db, stale)
    successor = claim(db, "next")
    assert (successor.id, successor["attempts"]) == (stale.id, 2)
    for late in (lambda: stale.done({"x": 1}), lambda: stale.fail("no"), stale.heartbeat, stale.release):
        with pytest.raises(ClaimLostError):
            late()
    expire(db, successor)
    assert claim(db) is None
    with pytest.raises(ClaimLostError, match="is dead and no longer held by 'next'"):
        successor.done()
    assert successor.status == "dead" and "result" not in successor
    assert successor["reason"] == "worker next was lost in attempt 2 of 2: it let its lease run out"
    assert [e["event"] for e in successor["events"]] == ["pushed", "claimed", "lost", "claimed", "lost", "dead"]


def test_retries_with_backoff_then_dead(db):
    job = push(db, limits=JobLimits(max_attempts=3, backoff=100))
    waits = []
    for _ in range(3):
        claimed = claim(db)
        claimed.fail(ValueError("lr is\0 too large: \ud800"))
        if claimed.status == "ready":
            assert "not before" in claimed.explain() and "lr is  too large" in claimed.explain() and claim(db) is None
            waits.append((claimed["due"] - claimed["events"][-1]["at"]).total_seconds())
            db.database["jobs"].update_one({"_id": job.id}, [{"$set": {"due": "$$NOW"}}])
    assert waits == [100, 200]
    assert job.status == "dead" and "ValueError: lr is" in job["reason"] and job.explain().startswith("dead at")
    job.retry()
    assert (job["status"], job["attempts"]) == ("ready", 0)
    claim(db).fail("bad input", retry=False)
    assert job.status == "dead" and job["reason"] == "bad input"
    job.retry()
    claim(db)
    with pytest.raises(StateError, match="is running; only one"):
        job.retry()


def test_cancel_before_and_during(db):
    first, second = push(db), push(db)
    running = claim(db)
    assert second.cancel() and second.status == "cancelled" and second.cancel() is False
    assert first.cancel("no longer needed") and first.status == "running" and "asked to end" in first.explain()
    with pytest.raises(JobCancelledError, match="no longer needed"):
        running.heartbeat()
    assert running.cancel() and first.status == "cancelled" and first["reason"] == "no longer needed"
    third = push(db)
    lost = claim(db)
    third.cancel()
    expire(db, lost)
    assert claim(db) is None and third.status == "cancelled"
    fourth = push(db)
    late = claim(db)
    fourth.cancel()
    late.done(1)  # it was through before it heard of it
    assert fourth.status == "done" and "cancel" not in fourth


def test_a_reason_is_a_text(db):
    job, other = push(db), push(db, priority=9)
    mine = claim(db)
    for call in (lambda: job.cancel(5), lambda: job.cancel(None), lambda: mine.cancel(b"x"), lambda: mine.fail(5)):
        with pytest.raises(QueryError, match="a reason is a text"):
            call()
    assert (job.status, other.status) == ("ready", "running")
    assert job.cancel("\0\ud800" + "x" * 20_000_000) and len(job.refresh()["reason"]) < 20_000
    mine.fail(" ")
    assert other.refresh()["reason"] == "no reason given"


def test_handed_back_does_not_count(db):
    job = push(db, max_attempts=1)
    claim(db).release()
    assert (job.status, job["attempts"]) == ("ready", 0)
    claim(db).done()


def test_after_and_what_becomes_of_it_when_upstream_ends_badly(db):
    a = push(db, max_attempts=1)
    b = push(db, after=[a])
    c = push(db, after=[b.id, a])
    claim(db).fail("broken")
    assert (a.status, b.status, c.status) == ("dead", "cancelled", "cancelled")
    assert b["reason"] == f"job {a.id}, which this one waits for, is dead"
    a.retry()  # and those that waited for it wait again
    assert (a.status, b.status, c.status) == ("ready", "waiting", "waiting")
    for _ in range(3):
        claim(db).done()
    assert c.status == "done"
    d = push(db, after=[a, b, c])  # all done already
    assert d.status == "ready"
    e = push(db, after=[d])
    db.jobs.find({"_id": d.id}).delete()
    assert claim(db) is None
    assert e.status == "cancelled" and e["reason"].endswith("is deleted")
    with pytest.raises(NotFoundError, match="there is no job"):
        push(db, after=[ObjectId()])
    with pytest.raises(QueryError, match="'after' of a job is not changed by hand"):
        db.jobs.find({"_id": a.id}).update({"$set": {"after": [c.id]}})  # would lead in a circle
    with pytest.raises(NotFoundError, match="in project 'other'"):
        push(TensorDB(client=db.database.client, project="other"), after=[c])


def test_after_any_and_a_retry_that_lets_followers_wait_again(db):
    a, other = push(db, max_attempts=1), push(db, priority=-5)
    b = push(db, after=[a, other], unique="b")
    report = db.jobs.push("report", entry=ENTRY, after_any=[b], after=[])
    c = push(db, after=[b])
    d = push(db, after=[a])
    by_hand = push(db, after=[a])
    by_hand.cancel("not wanted")
    assert f"job {b.id} (train, waiting)" in report.explain()
    claim(db).fail("broken")
    assert [job.status for job in (a, b, c, d)] == ["dead", "cancelled", "cancelled", "cancelled"]
    assert report.status == "ready"  # b has ended, in its way
    again = push(db, unique="b", priority=-9)
    a.retry()
    assert [job.status for job in (a, b, c, d, by_hand)] == ["ready", "cancelled", "cancelled", "waiting", "cancelled"]
    again.cancel()  # the key is free
    a.cancel("once more")
    assert d.status == "cancelled" and d["reason"].endswith("is cancelled")
    a.retry()
    assert [job.status for job in (a, b, c, d)] == ["ready", "waiting", "waiting", "waiting"]
    other.cancel()
    assert [job.status for job in (b, c, d)] == ["cancelled", "cancelled", "waiting"]
    a.cancel()
    a.retry()  # b waits for another job too, which is still cancelled
    assert [job.status for job in (b, c, d)] == ["cancelled", "cancelled", "waiting"]
    late = push(db, after_any=[b, other.id])
    assert late.status == "ready" and late["after_any"] == [b.id, other.id]
    after_deleted = push(db, after_any=[a])
    db.jobs.find({"_id": a.id}).delete()
    assert {claim(db).id for _ in range(2)} == {late.id, after_deleted.id}


def test_a_job_that_has_waited_long_gets_its_turn(db):
    """Under a steady flow of higher priority, and by no more than a share of the claims."""
    old, young = push(db), push(db)
    ago = {"$subtract": ["$$NOW", 3_700_000]}
    db.database["jobs"].update_one({"_id": old.id}, [{"$set": {"due": ago}}])
    claimed = []
    for _ in range(12):
        push(db, priority=9)
        claimed.append(claim(db))
        claimed[-1].done()
    assert old.id in [job.id for job in claimed[:4]] and young.status == "ready"
    assert [job["priority"] for job in claimed].count(9) == 11
    plan = db.database.command("explain", {
        "find": "jobs", "sort": {"due": 1, "_id": 1},
        "filter": {**db.jobs._claimable(["train", "other"], {"gpu": 1}), "due": {"$lte": young["due"]}},
    })  # fmt: skip
    chosen = str(plan["queryPlanner"]["winningPlan"])
    assert "'SORT_MERGE'" in chosen and "'SORT'" not in chosen and "kind_1_due_1" in chosen


def test_what_a_worker_left_half_done_the_next_one_finishes(db, monkeypatch):
    """Killed right after a job was done, before those that wait for it were told."""
    a = push(db)
    b = push(db, after=[a])
    monkeypatch.setattr("tensordb_data.api.job.resolve_dependencies", lambda *_: 0)
    claim(db).done()
    assert b.status == "waiting"
    assert claim(db).id == b.id


def test_one_active_job_a_key(db):
    job = push(db, unique="k")
    with pytest.raises(DuplicateError, match=f"job {job.id} is ready"):
        push(db, unique="k")
    push(db, unique="other")
    running = claim(db)
    with pytest.raises(DuplicateError, match="is running"):
        push(db, unique="k")
    job.cancel()
    expire(db, running)
    claim(db), claim(db)  # the second finds nothing ready, and looks for those that were lost
    assert job.status == "cancelled"
    again = push(db, unique="k")
    with pytest.raises(DuplicateError, match="another job with the key 'k' is active"):
        job.retry()
    again.cancel()
    job.retry()
    won = []

    def race():
        try:
            won.append(push(db, unique="race"))
        except DuplicateError:
            pass

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_scheduled_start(db):
    later = push(db, start=3600)
    long_ago = push(db, start=dt.datetime(2020, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=5))))
    assert "(its start), in 3" in later.explain()
    assert claim(db).id == long_ago.id and claim(db) is None
    with pytest.raises(QueryError, match="time zone"):
        push(db, start=dt.datetime(2030, 1, 1))


def test_clocks_an_hour_apart_and_two_workers_of_one_name(db, monkeypatch):
    """No clock of a client counts. Workers share a name without disturbing each other."""
    import time

    real = time.time()
    push(db), push(db)
    monkeypatch.setattr("time.time", lambda: real - 3600)
    first = claim(db, "same")
    monkeypatch.setattr("time.time", lambda: real + 3600)
    second = claim(db, "same")
    assert second.id != first.id and claim(db, "same") is None
    first.done(1)
    second.heartbeat()
    expire(db, second)
    third = claim(db, "same")
    with pytest.raises(ClaimLostError):
        second.done("stale")
    third.done("fresh")
    assert [job["result"] for job in db.jobs.find(sort="_id")] == [1, "fresh"]
    assert all(job["started"] <= job["finished"] for job in db.jobs.find())


def test_history_is_bounded(db):
    job = push(db, max_attempts=200)
    for _ in range(KEPT_EVENTS):
        claim(db).fail("again")
    assert len(job.refresh()["events"]) == KEPT_EVENTS and job["attempts"] == KEPT_EVENTS


def test_why_is_this_job_not_claimed(db):
    job = push(db, requires={"gpu": 1})
    assert "no worker is alive; start one: tensordb worker --kinds train --allow mypkg." in job.explain()
    common = {"kinds": ["train"], "allow": ["mypkg."], "has": {"gpu": 1}, "scripts": False, "job": None,
              "draining": False}  # fmt: skip
    odd = {
        "a$b": {"kinds": ["eval"]}, "b": {"has": {}}, "c": {"allow": ["my."]}, "d": {"draining": True},
        "e": {"job": "x"}, "f": {"allow": ["mypkg.jobs"]},
    }  # fmt: skip
    for name, change in odd.items():
        worker_registry.report(db.warehouse, ObjectId(), 60, {**common, "name": name, **change})
    worker_registry.report(db.warehouse, ObjectId(), -1, {**common, "name": "gone"})
    said = job.explain().splitlines()
    assert said[0] == "ready, and the first of its kind" and len(said) == 7
    for line, part in zip(
        said[1:], ("takes eval only", "has gpu 0, and 1", "allows my., and", "about to end", "busy with", "any moment"),
        strict=True,
    ):  # fmt: skip
        assert part in line
    push(db, priority=9)
    assert "1 of its kind come before it" in job.explain()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"entry": "mypkg.train"}, "names a function"),
        ({"entry": None}, "give a job either"),
        ({"script": "x"}, "give a job either"),
        ({"entry": "__main__:f"}, "no worker finds it"),
        ({"args": {"x": b"0" * 17_000_000}}, "takes 17.0 MB, and a job has room for 4 MB"),
        ({"args": {"x": {1, 2}}}, "a set has no order"),
        ({"args": {"x": object()}}, "cannot be stored"),
        ({"args": {"data": 1}}, "taken"),
        ({"args": {"a b": 1}}, "named like a variable"),
        ({"args": [1]}, "a dict of keyword arguments"),
        ({"data": {"a": 1}}, "is a query of db.data"),
        ({"requires": {"gpu": "1"}}, "is a number, 0 or more"),
        ({"requires": {"gpu": math.nan}}, "is a number, 0 or more"),
        ({"requires": {"a.b": 1}}, "named like a variable"),
        ({"requires": ["gpu"]}, "is a dict"),
        ({"priority": 1.5}, "integer"),
        ({"max_attempts": 0}, "integer from 1"),
        ({"start": "soon"}, "start="),
        ({"after": ["x"]}, "list of jobs"),
        ({"after": "x"}, "list of jobs"),
        ({"after_any": ["x"]}, "after_any= is a list of jobs"),
        ({"unique": ""}, "non-empty"),
        ({"tags": "x"}, "list of strings"),
        ({"tags": ["a\0"]}, "not valid text"),
    ],
)
def test_odd_arguments(db, arguments, says):
    with pytest.raises(QueryError, match=says):
        db.jobs.push("train", **{"entry": ENTRY, **arguments})
    assert db.jobs.find().count() == 0


def test_odd_kinds_and_claims(db):
    for kind in ("", None, 3, "a\0"):
        with pytest.raises(QueryError, match="non-empty"):
            db.jobs.push(kind, entry=ENTRY)
    for more in ({"kinds": "train"}, {"kinds": []}, {"lease": 0}, {"worker": ""}, {"resources": {"gpu": -1}}):
        with pytest.raises(QueryError):
            claim(db, **more)
    job = push(db)
    for call in (job.heartbeat, job.done, lambda: job.fail("x"), job.release):
        with pytest.raises(StateError, match="was not claimed here"):
            call()
    with pytest.raises(UnsupportedError, match="server time"):
        import mongomock

        TensorDB(client=mongomock.MongoClient(), blobs="memory://").jobs.push("x", entry=ENTRY)


def test_results_that_are_odd(db):
    torch = pytest.importorskip("torch")
    other = db.jobs.push("other", entry=ENTRY)
    job = push(db, tags=["a.b", "$x", "日本 ☃"], args={"lr": torch.tensor(0.5)})
    mine = claim(db)
    for progress in (math.nan, 2, "x", True):
        with pytest.raises(QueryError, match="from 0 to 1"):
            mine.heartbeat(progress)
    assert mine["args"] == {"lr": 0.5}
    mine.done({
        "acc": math.nan, "f1": "n/a $x", "loss": torch.tensor(0.25), "n": np.int64(3), "l": [np.float64(1)],
        "job": other, 1: np.zeros(3), "q": object(), "large": b"0" * 17_000_000,
        "scores": np.arange(10**6), "layers": [torch.ones(300, 300)],
    })  # fmt: skip
    places = job.refresh()["result"]["scores"], job["result"]["layers"][0]
    scores, layer = (db.params.find({"_id": at["id"]}).one().load()[at["name"]] for at in places)
    assert (np.asarray(scores) == np.arange(10**6)).all() and torch.equal(layer, torch.ones(300, 300))
    assert db.params.find({"run": job.run, "tags": "result"}).count() == 1
    assert job.refresh()["result"]["1"] == [0.0] * 3 and job["result"]["job"] == {"collection": "jobs", "id": other.id}
    assert [line.split(":")[0] for line in job["left_out"]] == ["q", "large"] and "left out" in job.explain()
    found = db.jobs.find({"tags": "日本 ☃"}).first()
    assert math.isnan(found["result"]["acc"]) and found["result"]["f1"] == "n/a $x" and found["result"]["loss"] == 0.25
    assert found["result"]["n"] == 3 and job.refresh().tags == ["a.b", "$x", "日本 ☃"]
    # Sorted downwards what is no number comes last; upwards it comes first, unless the query leaves it out.
    for acc in (0.5, 0.9):
        push(db)
        claim(db).done({"acc": acc})
    assert db.jobs.find({"status": "done"}, sort=[("result.acc", -1)]).first()["result"]["acc"] == 0.9
    numbers = {"result.acc": {"$gte": -math.inf}}
    assert db.jobs.find(numbers, sort=[("result.acc", 1)]).first()["result"]["acc"] == 0.5


def test_a_lost_answer_to_a_completion_is_no_lost_claim(db, monkeypatch):
    job = push(db)
    mine = claim(db)
    real = mine._claim.mongo

    class Lossy:
        name, losses = "jobs", 2

        def find_one_and_update(self, *args, **kwargs):
            found = real.find_one_and_update(*args, **kwargs)
            self.losses -= 1
            if self.losses >= 0:
                raise AutoReconnect("connection closed")
            return found

    object.__setattr__(mine._claim, "mongo", Lossy())
    mine.done({"acc": 1})
    assert job.status == "done" and [e["event"] for e in job["events"]] == ["pushed", "claimed", "done"]


def test_nobody_changes_a_job_by_hand_but_its_tags_and_priority(db):
    job = push(db)
    here = db.jobs.find({"_id": job.id})
    here.tag("x"), here.update({"$set": {"priority": 7}})
    assert job.refresh()["priority"] == 7 and job.tags == ["x"]
    for field in ("status", "entry", "args.lr", "attempts"):
        with pytest.raises(QueryError, match="not changed by hand"):
            here.update({"$set": {field: 1}})


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 9)), max_size=25))
def test_any_order_of_events_accepts_one_completion_and_has_one_owner(db, events):
    db.jobs.find().delete(all=True)
    jobs = [push(db, max_attempts=2) for _ in range(3)]
    held, accepted = [], []
    for what, which in events:
        if what == "claim":
            found = claim(db, f"w{len(held)}")
            if found is not None:
                held.append(found)
            continue
        if what == "cancel":
            jobs[which % 3].cancel()
            continue
        if not held:
            continue
        job = held[which % len(held)]
        if what == "expire":
            expire(db, job)
            continue
        try:
            if what == "done":
                job.done(job["worker"])
                accepted.append((job.id, job["worker"]))
            elif what == "fail":
                job.fail("x")
            else:
                job.heartbeat()
        except (ClaimLostError, JobCancelledError):
            pass
    ids = [id for id, _ in accepted]
    assert len(ids) == len(set(ids))
    for job in jobs:
        job.refresh()
        assert (job["status"] == "done") == (job.id in ids) and job["attempts"] <= 2
        if job["status"] == "done":
            assert (job.id, job["result"]) in accepted
        if job["status"] in ("dead", "cancelled"):
            assert job["reason"]
