"""Jobs that another tool has written: they run no more than the worker's permissions say, and stop nobody."""

from __future__ import annotations

import math
import os

import pytest
from bson import ObjectId
from typer.testing import CliRunner

from tensordb_data import JobLimits, Permissions
from tensordb_data.cli.main import app
from tensordb_data.errors import QueryError
from tensordb_data.job_runner import job_main
from tensordb_data.job_runner.handoff import claimed_job, job_ticket
from tensordb_data.job_runner.worker import Worker

HERE = "tests.integration.workload"
ALLOWED = Permissions(allow=[HERE])
CHANGES = [
    ({"$set": {"script": "raise SystemExit('it ran')"}}, "either an entry or a script"),
    ({"$unset": {"entry": 1}}, "either an entry or a script"),
    ({"$set": {"entry": [f"{HERE}:add"]}}, "'entry' is not of its kind"),
    ({"$set": {"attempts": "0"}}, "'attempts' is missing or not of its kind"),
    ({"$set": {"attempts": math.nan}}, "'attempts'"),
    ({"$set": {"max_attempts": 0}}, "'max_attempts'"),
    ({"$set": {"backoff": "soon"}}, "'backoff'"),
    ({"$unset": {"backoff": 1}}, "'backoff'"),
    ({"$set": {"backoff": math.nan}}, "'backoff'"),
    ({"$set": {"events": "none"}}, "'events'"),
    ({"$set": {"events": [1]}}, "'events'"),
    ({"$set": {"time_limit": "never"}}, "'time_limit'"),
    ({"$set": {"tags": ["a\0"]}}, "'tags'"),
    ({"$set": {"tags": 3}}, "'tags'"),
    ({"$set": {"args": []}}, "'args'"),
    ({"$set": {"requires": {"gpu": "all"}}}, "'requires'"),
    ({"$set": {"kind": ""}}, "'kind'"),
    ({"$set": {"data": {"collection": "data"}}}, "'data'"),
    ({"$set": {"reason": 1}}, "'reason'"),
    ({"$set": {"worker": {"x": 1}}}, "'worker'"),
    ({"$set": {"due": "today"}}, "'due'"),
    ({"$set": {"after": "x"}}, "'after'"),
    ({"$set": {"pad": b"x" * 12_000_000}}, "larger than 11.5 MB"),
]


def push(db, name="add", **more):
    given = {"args": {"a": 1, "b": 2}, **more}
    return db.jobs.push("t", entry=f"{HERE}:{name}", limits=JobLimits(backoff=0, max_attempts=2), **given)


def change(db, job, change):
    db.database["jobs"].update_one({"_id": job.id}, change)


def test_what_is_not_well_formed_is_left_alone_and_the_others_go_on(db, mongo_uri):
    """Ready, lost by a worker, or waiting: each of them comes before a good one, which is claimed or recovered."""
    mongo = db.database["jobs"]
    good = [push(db), push(db)]
    good.append(push(db, after=good[:1], priority=-1))
    stored = mongo.find_one({"_id": good[0].id})
    long_ago = stored["created"]
    db.jobs.claim(worker="w").done()
    db.jobs.claim(worker="lost")
    ready = {**stored, "priority": 9}
    states = [
        ready,
        {**ready, "status": "running", "_tdb": {**stored["_tdb"], "claim": {"until": long_ago}}},
        {**ready, "status": "waiting", "after": [good[0].id]},
    ]
    bad = []
    for wrong, why in CHANGES:
        ids = [ObjectId() for state in states]
        mongo.insert_many([{**state, "_id": id} for state, id in zip(states, ids, strict=True)])
        mongo.update_many({"_id": {"$in": ids}}, wrong)
        bad.append((ids, why))
    mongo.insert_one({**ready, "_id": "../../x"})
    change(db, good[1], {"$set": {"_tdb.claim.until": long_ago}})
    change(db, good[2], {"$set": {"status": "waiting"}})
    for job in good[1:]:
        mine = db.jobs.claim(worker="w")
        assert mine.id == job.id
        mine.done()
    assert db.jobs.claim(worker="w") is None and Worker(db, may=ALLOWED).run(until_empty=True) == 0
    for (ready_, running, waiting), why in bad:
        found = [db.jobs.find({"_id": id}).first() for id in (ready_, running, waiting)]
        assert [job.status for job in found] == ["ready", "running", "waiting"]
        said = found[0].explain()
        assert said.startswith("left alone, another tool has written it") and why in said, said
    odd = [ids[0] for ids, why in bad if "events" in why or "attempts" in why]
    for words in (["list", "--limit", "100"], *(["show", str(id)] for id in odd)):
        done = CliRunner().invoke(app, ["jobs", *words, "--db", mongo_uri])
        assert done.exit_code == 0, (words, done.output, done.exception)
    odd_events = db.jobs.find({"_id": odd[-1]}).first()
    assert odd_events.cancel() and odd_events.status == "cancelled"


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        ({"$set": {"script": "open('PATH', 'w')"}, "$unset": {"entry": 1}}, "runs no stored scripts (--allow-scripts)"),
        ({"$set": {"entry": "os:system", "args": {"command": "touch PATH"}}}, "os is not on the list"),
        ({"$set": {"entry": f"{HERE}_evil:add"}}, "is not on the list"),
        ({"$set": {"entry": f"{HERE}:os.system", "args": {"command": "touch PATH"}}}, "leads through another module"),
        ({"$set": {"entry": f"{HERE}:Path.touch", "args": {"self": "PATH"}}}, "was defined in pathlib"),
        ({"$set": {"entry": f"{HERE}:add.__globals__"}}, "expected a reference"),
        ({"$set": {"entry": f"{HERE}:add\nimport os"}}, "expected a reference"),
        ({"$set": {"data": '{"collection": "jobs"}'}}, "'data' is a query of db.data"),
        ({"$set": {"data": '{"collection": "data", "filter": {"$where": "sleep(9)"}}'}}, "runs code on the server"),
        ({"$set": {"data": "no query"}}, "this is not JSON"),
        ({"$set": {"args": {"a b": 1}}}, "does not take a b"),
    ],
)  # fmt: skip
def test_what_is_changed_after_the_claim_runs_no_more_than_the_permissions_say(db, stored, says, tmp_path):
    job = push(db)
    ticket = job_ticket(db.jobs.claim(worker="w"), 60.0, [HERE], False)
    path = tmp_path / "it ran"
    change(db, job, _placed(stored, str(path)))
    job_main._report(claimed_job(db, ticket), ticket, os.getpid())
    assert job.status == "dead" and says in job["reason"] and not path.exists()


def _placed(value, path):
    if isinstance(value, dict):
        return {name: _placed(item, path) for name, item in value.items()}
    return value.replace("PATH", path) if isinstance(value, str) else value


def test_a_script_beside_an_allowed_entry_runs_for_nobody(db, tmp_path):
    """Not even where scripts are allowed: what the job is would depend on who looks."""
    job = push(db)
    change(db, job, {"$set": {"script": f"open({str(tmp_path / 'ran')!r}, 'w')"}})
    both = Permissions(allow=[HERE], scripts=True)
    for may in (ALLOWED, both):
        assert Worker(db, may=may).run(until_empty=True) == 0
    assert job.status == "ready" and not (tmp_path / "ran").exists()


def test_names_that_begin_like_an_allowed_one_are_not_claimed(db):
    entries = {
        "mypkg.": ["mypkg_evil:f", "mypkgs.a:f", "amypkg:f", "x.mypkg:f", "mypkgXa:f", "MYPKG:f", "\nmypkg:f"],
        "mypkg.nets": ["mypkg.nets2:f", "mypkg.nets.deep:f", "mypkgXnets:f", "mypkg:nets"],
        "mypkg.nets:cnn": ["mypkg.nets:cnn2", "mypkg.nets:cnn.f", "mypkg.nets:cn"],
    }  # fmt: skip
    for allowed, odd in entries.items():
        for entry in odd:
            change(db, push(db), {"$set": {"entry": entry}})
        assert Worker(db, may=Permissions(allow=[allowed])).run(until_empty=True) == 0, allowed
    assert db.jobs.find({"status": "ready", "attempts": 0}).count() == sum(map(len, entries.values()))


def test_what_becomes_of_a_job_while_it_runs_does_not_end_its_worker(db, tmp_path, monkeypatch):
    """The document of the first is another one when its process has ended; the second has its turn."""
    first, second = push(db, priority=1), push(db)
    said = []

    def ended(process, _):
        change(db, first, {"$set": {"_tdb": [{"p": db.project}], "time_limit": "x"}})
        return True

    with monkeypatch.context() as patch:
        patch.setattr("tensordb_data.job_runner.job_process.JobProcess.ends_within", ended)
        worker = Worker(db, may=ALLOWED, on_event=said.append)
        patch.setattr(worker, "_say", lambda line: (said.append(line), patch.undo()))
        worker.run(until_empty=True)
    assert second.status == "done", said


def test_a_job_has_a_size(db):
    with pytest.raises(QueryError, match="at most 10 MB with its queries"):
        push(db, data=db.data.find({"text": "x" * 10_000_000}))
