"""Old public names work for one more release, and each use warns with the new name."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import tensordb_data
from tensordb_data import Built, CheckpointError, Every, Permissions, QueryError, SaveOptions, TensorDB, mix
from tensordb_data.checkpoint.checkpointer import Checkpointer
from tensordb_data.continuous import Evaluator
from tensordb_data.job_runner.worker import Worker
from tensordb_data.torch import StepCheckpointer


def samples(db: TensorDB) -> Any:
    with db.data.writer("d") as writer:
        writer.add_many(x=np.arange(12))
    return db.data.find({"dataset": "d"})


def of_a_stream(db: TensorDB) -> None:
    stream = samples(db).stream(batch_size=3, passes=1, shuffle=True).pin()
    assert len(list(stream.worker(1, 2))) == len(list(stream.shard(1, 2))) == 2


def of_a_mix(db: TensorDB) -> None:
    mixed = mix([(samples(db).stream(batch_size=3), 1.0)]).pin()
    old, new = next(iter(mixed.worker(1, 2))), next(iter(mixed.shard(1, 2)))
    assert old["x"].tolist() == new["x"].tolist()


def of_a_torch_checkpointer(db: TensorDB) -> None:
    with StepCheckpointer(db, "r", torch.nn.Linear(1, 1), every=1) as checkpointer:
        checkpointer.step()
        checkpointer.drain()
        assert db.params.find({"run": "r"}).count() == 1


def of_a_keras_callback(db: TensorDB) -> None:
    keras = pytest.importorskip("keras")
    from tensordb_data.tf import StepCheckpoint

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    checkpoint = StepCheckpoint(db, "r", every=1)
    model.fit(np.ones((2, 1)), np.ones((2, 1)), batch_size=1, verbose=0, callbacks=[checkpoint])
    checkpoint.drain()
    assert db.params.find({"run": "r"}).count() == 2
    checkpoint.close()


def of_the_core(db: TensorDB) -> None:
    options = SaveOptions(signals=False)
    checkpointer = Checkpointer(db.warehouse, "r", lambda step: {"model": {"w": np.ones(3)}}, every=1, options=options)
    checkpointer.end_step(1, {})
    checkpointer.drain()
    assert db.params.find({"run": "r"}).count() == 1
    checkpointer.close()


def of_a_job(db: TensorDB) -> None:
    db.jobs.push("k", entry="m:f")
    job = db.jobs.claim(worker="w")
    assert job is not None
    job.hand_back()
    assert job.status == "ready"


def of_a_claim(db: TensorDB) -> None:
    db.jobs.push("k", entry="m:f", requires={"gpu": 1})
    assert db.jobs.claim(worker="w", resources={"gpu": 0}) is None
    assert db.jobs.claim(worker="w", has={"gpu": 1}) is not None  # type: ignore[call-arg]
    with pytest.raises(QueryError, match="both resources= and has="):
        db.jobs.claim(worker="w", has={}, resources={})  # type: ignore[call-arg]


def of_a_worker(db: TensorDB) -> None:
    job = db.jobs.push("k", entry="mypkg.no:f", requires={"tpu": 1}, max_attempts=1)
    lines: list[str] = []
    old: dict[str, Any] = {"has": {"tpu": 1}, "say": lines.append}
    assert Worker(db, may=Permissions(allow=["mypkg."]), **old).run(until_empty=True) == 1
    assert job.status == "dead" and any(str(job.id) in line for line in lines)


def of_a_saver(db: TensorDB) -> None:
    old: dict[str, Any] = {"every": 2, "every_seconds": 1e6, "when_busy": "skip", "architecture": "cnn"}
    with StepCheckpointer(db, "r", torch.nn.Linear(1, 1), signals=False, **old) as checkpointer:  # type: ignore[call-arg]
        for _ in range(4):
            checkpointer.step()
            checkpointer.wait()
    assert sorted(db.params.find({"run": "r"}).distinct("step")) == [2, 4]
    assert db.params.find({"run": "r"}).first().lineage["architecture"] == "cnn"
    with pytest.raises(CheckpointError, match=r"both every= and max_overhead=: give every=Every\(overhead=\)"):
        StepCheckpointer(db, "r", torch.nn.Linear(1, 1), every=Every(steps=1), max_overhead=0.1)  # type: ignore[call-arg]
    with pytest.raises(CheckpointError, match="both options= and memory="):
        StepCheckpointer(db, "r", torch.nn.Linear(1, 1), options=SaveOptions(), memory="4GB")  # type: ignore[call-arg]


def of_a_limit(db: TensorDB) -> None:
    job = db.jobs.push("k", entry="m:f", backoff=1, max_attempts=7, time_limit=None)  # type: ignore[call-arg]
    assert (job["backoff"], job["max_attempts"], job.get("time_limit")) == (1.0, 7, None)


def of_permissions(db: TensorDB) -> None:
    job = db.jobs.push_script("k", "result = 3")
    assert Worker(db, allow=["m."], allow_scripts=True).run(until_empty=True) == 1  # type: ignore[call-arg]
    assert job.refresh()["result"] == 3


def of_what_is_scored(db: TensorDB) -> None:
    parts = {"model": {"w": np.ones(2)}, "ema": {"w": np.zeros(2)}, "training": {}}
    with contextlib.closing(Checkpointer(db.warehouse, "r", lambda step: parts, every=1)) as checkpointer:
        checkpointer.end_step(1, {})
    score: Any = lambda state, batches: float(state["w"].sum())  # noqa: E731
    data = samples(db)
    old: dict[str, Any] = {"part": "ema", "architecture": None}
    Evaluator(db, db.params.find({"run": "r"}), score, metric="sum", data=data, **old).once()
    Evaluator(db, db.params.find({"run": "r"}), score, metric="whole", data=data, model=Built(part="model")).once()
    assert (db.params.find().first()["sum"], db.params.find().first()["whole"]) == (0.0, 2.0)


def test_what_the_group_refuses_is_named_as_it_was_written(db: TensorDB) -> None:
    model: Any = torch.nn.Linear(1, 1)
    for old in ({"every_seconds": 0}, {"max_overhead": 2}, {"every": 1, "memory": "much"}, {"every": 1, "grace": -1}):
        given: dict[str, Any] = old
        with pytest.warns(DeprecationWarning), pytest.raises(CheckpointError, match=f"^{list(old)[-1]}= "):
            StepCheckpointer(db, "r", model, **given)
    with pytest.warns(DeprecationWarning), pytest.raises(QueryError, match=r"^backoff= "):
        db.jobs.push("k", entry="m:f", backoff=-1)  # type: ignore[call-arg]
    with pytest.warns(DeprecationWarning), pytest.raises(CheckpointError, match=r"^every= gives .* max_overhead= "):
        StepCheckpointer(db, "r", model, every=5, max_overhead=0.1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("use", "messages"),
    [
        (of_a_stream, ["Stream.worker() is now Stream.shard()"]),
        (of_a_mix, ["Mix.worker() is now Mix.shard()"]),
        (of_a_torch_checkpointer, ["StepCheckpointer.drain() is now StepCheckpointer.wait()"]),
        (of_a_keras_callback, ["StepCheckpoint.drain() is now StepCheckpoint.wait()"]),
        (of_the_core, ["Checkpointer.drain() is now Checkpointer.wait()"]),
        (of_a_job, ["Job.hand_back() is now Job.release()"]),
        (of_a_claim, ["Jobs.claim(has=) is now Jobs.claim(resources=)"]),
        (
            of_a_saver,
            [
                "StepCheckpointer(every_seconds=) is now StepCheckpointer(every=Every(seconds=))",
                "StepCheckpointer(when_busy=) is now StepCheckpointer(options=SaveOptions(when_busy=))",
                "StepCheckpointer(signals=) is now StepCheckpointer(options=SaveOptions(signals=))",
                "StepCheckpointer(architecture=) is now StepCheckpointer(options=SaveOptions(architecture=))",
            ],
        ),
        (
            of_a_limit,
            [
                "Jobs.push(backoff=) is now Jobs.push(limits=JobLimits(backoff=))",
                "Jobs.push(time_limit=) is now Jobs.push(limits=JobLimits(time_limit=))",
            ],
        ),
        (
            of_permissions,
            [
                "Worker(allow=) is now Worker(may=Permissions(allow=))",
                "Worker(allow_scripts=) is now Worker(may=Permissions(scripts=))",
            ],
        ),
        (
            of_what_is_scored,
            [
                "Evaluator(architecture=) is now Evaluator(model=Built(architecture=))",
                "Evaluator(part=) is now Evaluator(model=Built(part=))",
            ],
        ),
        (of_a_worker, ["Worker(has=) is now Worker(resources=)", "Worker(say=) is now Worker(on_event=)"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_an_old_name_warns_and_works(db: TensorDB, use: Callable[[TensorDB], None], messages: list[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DeprecationWarning)
        use(db)
    ours = [warning for warning in caught if "one more release" in str(warning.message)]
    assert [str(warning.message).partition(";")[0] for warning in ours] == messages
    assert all(warning.filename == __file__ for warning in ours), "a warning points at the line that uses the name"


def test_one_is_first_without_a_warning(db: TensorDB) -> None:
    found = samples(db)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        assert found.one() == found.first() == found.head(1)[0]


def test_the_database_is_the_one_of_the_driver(db: TensorDB) -> None:
    samples(db)
    assert db.database["data"].count_documents({"_tdb.p": db.project}) == 12


def test_what_users_annotate_with_is_at_the_root(db: TensorDB) -> None:
    assert all(hasattr(tensordb_data, name) for name in tensordb_data.__all__)
    found = samples(db)
    db.params.save({"w": np.ones(2)}, run="r", step=1)
    db.jobs.push("k", entry="m:f")
    with db.logs.run("r") as log:
        log.write(1, loss=0.5)
    values = {
        tensordb_data.Selection: found,
        tensordb_data.Query: found.query,
        tensordb_data.Sample: found.first(),
        tensordb_data.Stream: found.stream(batch_size=2),
        tensordb_data.Mix: mix([(found.stream(batch_size=2), 1.0)]),
        tensordb_data.ParameterSet: db.params.find().first(),
        tensordb_data.Job: db.jobs.find().first(),
        tensordb_data.RunLog: log,
        tensordb_data.LogSelection: db.logs.find({"run": "r"}),
        tensordb_data.LogRow: db.logs.find({"run": "r"}).first(),
        tensordb_data.Hit: db.search("r")[0],
    }
    assert {kind.__name__: type(value) for kind, value in values.items()} == {kind.__name__: kind for kind in values}
