"""Options of the library, alone and in their groups: both give the same, and contradictions name both."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tensordb_data import (
    Built,
    CheckpointError,
    Every,
    JobLimits,
    JobSpec,
    Keep,
    Permissions,
    QueryError,
    SaveOptions,
    Shard,
    TensorDB,
    TensorDBError,
    UnsupportedError,
)
from tensordb_data.checkpoint.checkpointer import Checkpointer
from tensordb_data.continuous import Evaluator, Trainer
from tensordb_data.job_runner.worker import Worker
from tensordb_data.torch import QueryDataset, StepCheckpointer


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What is tested here warns of nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*one more release", category=DeprecationWarning)
        yield


@pytest.fixture
def samples(db: TensorDB) -> Any:
    with db.data.writer("d") as writer:
        writer.add_many(x=np.arange(50), weight=np.arange(50) % 2)
    return db.data.find({"dataset": "d"})


def values(batches: Any) -> list[list[int]]:
    return [batch["x"].tolist() for batch in batches]


@pytest.mark.parametrize("tail", ["short", "drop", "pad"])
def test_a_shard_and_its_shorthands_deliver_the_same(samples: Any, tail: Any) -> None:
    options: dict[str, Any] = {"batch_size": 4, "shuffle": True, "passes": 1, "fields": ["x"]}
    short = values(samples.stream(**options, rank=1, world_size=3, end=tail))
    assert short == values(samples.stream(**options, shard=Shard(rank=1, world_size=3, tail=tail)))
    assert short == values(QueryDataset(samples, **options, shard=Shard(rank=1, world_size=3, tail=tail)))


def test_weights_imply_replacement(samples: Any) -> None:
    options: dict[str, Any] = {"batch_size": 10, "seed": 3, "passes": 2, "weights": "weight", "fields": ["x"]}
    drawn = values(samples.stream(**options))
    assert drawn == values(samples.stream(**options, replacement=True)) and all(x % 2 for xs in drawn for x in xs)
    with pytest.raises(QueryError, match="`weights` need `replacement=True`"):
        samples.stream(**options, replacement=False)


def learner() -> Any:
    return type("Still", (), {
        "step": lambda self, batch: {"m": 1.0}, "state_dict": lambda self: {"model": {"w": np.ones(2)}},
        "load_state_dict": lambda self, state: None,
    })()  # fmt: skip


def savers(db: TensorDB, samples: Any) -> dict[str, Callable[..., Any]]:
    """All that save training states, as functions of the options that they share."""
    from tensordb_data.torch.trainer_callback import CallbackCheckpointer

    module = torch.nn.Linear(1, 1)
    found: dict[str, Callable[..., Any]] = {
        "Checkpointer": lambda **more: Checkpointer(db.warehouse, "r", lambda step: {}, **more).close(),
        "StepCheckpointer": lambda **more: StepCheckpointer(db, "r", module, **more).close(),
        "CallbackCheckpointer": lambda **more: CallbackCheckpointer(db, "r", None, module, {}, **more).close(),
        "Trainer": lambda **more: Trainer(db, "r", learner(), samples.stream(2), **more),
    }
    for framework in ("torch.lightning", "torch.transformers", "tf"):
        wanted = {"torch.lightning": "lightning", "torch.transformers": "transformers", "tf": "keras"}[framework]
        module_ = __import__(f"tensordb_data.{framework}", fromlist=["StepCheckpoint"]) if _there(wanted) else None
        if module_ is not None:
            found[framework] = lambda cls=module_.StepCheckpoint, **more: cls(db, "r", **more)
    return found


def _there(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def test_all_savers_take_the_same_groups(db: TensorDB, samples: Any) -> None:
    given: dict[str, Any] = {
        "every": Every(steps=200, seconds=60), "on_best": ("m", "min"), "tags": ["t"], "keep": Keep(last=3),
        "options": SaveOptions(memory="4GB", when_busy="skip", signals=False, architecture="cnn"),
    }  # fmt: skip
    for name, saver in savers(db, samples).items():
        saver(**given)
        with pytest.raises(TypeError, match=r"no option evry=: did you mean every=\?"):
            saver(every=1, evry=2)
        assert name


def test_a_trainer_has_no_grace(db: TensorDB, samples: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"SaveOptions\(grace=\)"):
        Trainer(db, "r", learner(), samples.stream(2), every=1, options=SaveOptions(grace=3))
    with pytest.raises(CheckpointError, match="options= is a SaveOptions"):
        Trainer(db, "r", learner(), samples.stream(2), every=1, options={"memory": 3})  # type: ignore[arg-type]


def test_a_trainer_saves_when_every_says_so(db: TensorDB, samples: Any) -> None:
    options = SaveOptions(architecture="cnn", signals=False)
    trainer = Trainer(db, "r", learner(), samples.stream(2), every=Every(steps=2), keep=Keep(last=2), options=options)
    assert trainer.run(steps=7) == 7
    assert sorted(db.params.find({"run": "r"}).distinct("step")) == [6, 7]
    assert db.params.find({"run": "r"}).first().lineage["architecture"] == "cnn"


def of_a_job(job: Any) -> dict[str, Any]:
    names = ("kind", "args", "priority", "requires", "max_attempts", "backoff", "time_limit", "tags", "entry", "script")
    return {name: job.get(name) for name in names} | {"data": job.get("data")}


def test_a_job_by_options_by_limits_and_by_its_spec(db: TensorDB, samples: Any) -> None:
    more: dict[str, Any] = {"args": {"a": 1}, "priority": 2, "requires": {"gpu": 1}, "tags": ["t"], "data": samples}
    limits = JobLimits(max_attempts=7)
    spec = JobSpec(kind="k", entry="m:f", limits=limits, **more)
    pushed = [
        db.jobs.push("k", entry="m:f", max_attempts=7, **more),
        db.jobs.push("k", entry="m:f", limits=limits, **more),
        db.jobs.push(spec),
    ]
    first, *rest = map(of_a_job, pushed)
    assert rest == [first, first] and first["max_attempts"] == 7 and first["backoff"] == 5.0
    again = db.jobs.push(dataclasses.replace(spec, args={"a": 2}, after=[pushed[0]]))
    assert again["args"] == {"a": 2} and again.status == "waiting"
    program = "result = a"
    scripts = [db.jobs.push("k", script=program, **more), db.jobs.push_script("k", program, **more)]
    assert of_a_job(scripts[0]) == of_a_job(scripts[1]) and scripts[0]["script"] == program


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda db: db.jobs.push("k", entry="m:f", max_attempts=0), QueryError, "^max_attempts= is an integer"),
        (lambda db: db.jobs.push("k", entry="m:f", max_attempts=2, limits=JobLimits()), QueryError,
         r"limits= and max_attempts= are both given: give limits=JobLimits\(max_attempts=\)"),
        (lambda db: db.jobs.push(JobSpec(kind="k", entry="m:f"), priority=3), QueryError, "priority= .* a JobSpec"),
        (lambda db: db.jobs.push(3, entry="m:f"), QueryError, "^kind= is a non-empty string"),
        (lambda db: db.jobs.push_script("k", ""), QueryError, "^text= is a non-empty string"),
        (lambda db: db.jobs.push_script("k", "x", entry="m:f"), TypeError, "no option entry="),
        (lambda db: db.jobs.push("k", entry="m:f", max_attempt=3), TypeError, r"did you mean max_attempts=\?"),
        (lambda db: db.data.find().stream(2, suffle=True), TypeError, r"Selection.stream .*suffle=.*mean shuffle=\?"),
        (lambda db: QueryDataset(db.data.find(), worlds_size=2), TypeError, r"did you mean world_size=\?"),
        (lambda db: db.data.find().stream(2, rank=0, shard=Shard()), QueryError, "shard= and rank= are both given"),
        (lambda db: QueryDataset(db.data.find(), 2, shard=Shard(), end="pad"), QueryError, "shard= and end= are both"),
        (lambda db: db.data.find().query.replace(limits=3), TypeError, r"did you mean limit=\?"),
        (lambda db: StepCheckpointer(db, "r", torch.nn.Linear(1, 1), every=0), CheckpointError, "^every= must be"),
        (lambda db: StepCheckpointer(db, "r", torch.nn.Linear(1, 1)), CheckpointError, "When to save"),
        (lambda db: Worker(db, may=["mypkg."]), QueryError, r"may= is a Permissions\(allow="),
        (lambda db: Worker(db, may=Permissions(allow=["m."]), kind=["k"]), TypeError, r"did you mean kinds=\?"),
        (lambda db: Evaluator(db, db.params.find(), len, metric="m", data=db.data.find(), model="cnn"), QueryError,
         r"model= is a Built\(architecture="),
        (lambda db: Built(architecture=db.architectures.find(), part="ema"), QueryError,
         r"Built\(part=\) .* Built\(architecture=\)"),
        (lambda db: TensorDB.from_host("db1", prot=1), TypeError, r"did you mean port=\?"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named_as_it_was_written(
    db: TensorDB, call: Callable[[TensorDB], object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as raised:
        call(db)
    assert issubclass(error, TypeError) or isinstance(raised.value, TensorDBError)


def test_a_warehouse_by_host(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr("tensordb_data.api.database.Warehouse.open", lambda where, **more: opened.append((where, more)))
    more: dict[str, Any] = {"db_name": "n", "user_name": "me", "password": "pw"}
    TensorDB(ip="db1", port=27018, studyID="1", blobs="s3://b", **more)
    TensorDB.from_host("db1", 27018, project="1", blobs="s3://b", **more)
    assert opened[0] == opened[1] and "me:pw@db1:27018" in opened[0][0].uri
