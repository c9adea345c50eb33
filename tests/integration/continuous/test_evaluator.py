"""Each parameter set is scored once, whoever dies; what gives no score says why."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from pymongo.errors import OperationFailure

from tensordb_data import Built, NotAllowedError, QueryError, SchemaError, TensorDB
from tensordb_data.api.watch import Watch
from tensordb_data.continuous import Evaluator
from tensordb_data.errors import ConnectError
from tests.integration.continuous import programs
from tests.integration.continuous.programs import kill_server, running, save


@pytest.fixture
def filled(db: TensorDB) -> TensorDB:
    fill(db)
    return db


def fill(db: TensorDB) -> None:
    with db.data.writer("d") as writer:
        writer.add_many(label=list(range(10)))


def evaluator(db: TensorDB, score: Any, **options: Any) -> Evaluator:
    options = {"metric": "acc", "data": db.data.find({"dataset": "d"}), "batch_size": 4, "name": "e", **options}
    return Evaluator(db, db.params.find({"run": "r"}), score, **options)


def fields(db: TensorDB, *names: str) -> dict[int, tuple[Any, ...]]:
    return {found["step"]: tuple(found.get(name) for name in names) for found in db.params.find({"run": "r"})}


def by_step(state: Any, batches: Iterable[Mapping[str, Any]]) -> float:
    return float(state["w"][0]) / 10


def test_streams_the_query_and_writes_back(filled: TensorDB) -> None:
    for step in (1, 2):
        save(filled, step)
    save(filled, 3, acc=0.9)
    order: list[int] = []

    def score(state: Any, batches: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        order.append(int(state["w"][0]))
        labels = [label for batch in batches for label in batch["label"].tolist()]
        return {"acc": sum(labels) / 100, "seen": len(labels), "remark": "fine"}

    assert evaluator(filled, score).once() is None
    assert order == [2, 1]  # the newest first
    found = fields(filled, "acc", "seen", "remark")
    assert found == {1: (0.45, 10, "fine"), 2: (0.45, 10, "fine"), 3: (0.9, None, None)}
    noted = filled.params.find({"step": 1}).first()["provenance"]["acc"]
    assert noted["source"] == "e" and noted["at"].year >= 2024


def test_notes_the_samples_that_it_scored_on(filled: TensorDB) -> None:
    """Of a frozen set, whatever happens to the data since; and not those that no set was scored on."""
    save(filled, 1)
    low, high = ({"dataset": "d", "label": {op: 5}} for op in ("$lt", "$gte"))
    (one,), other = filled.data.find(low).head(1), filled.data.find(high).first()
    frozen = filled.data.find(low).freeze("low")
    evaluator(filled, by_step, data=frozen).once()
    filled.data.find(low).update({"$set": {"label": 9}})
    assert [found.step for found in filled.params.scored_on(frozen)] == [1]
    assert [found.step for found in filled.params.scored_on(filled.data.find({"_id": one.id}))] == [1]
    assert filled.params.scored_on(filled.data.find({"_id": other.id})) == []
    save(filled, 2)
    evaluator(filled, lambda state, batches: float("nan"), data=filled.data.find({"_id": other.id})).once()
    assert filled.params.scored_on(filled.data.find({"_id": other.id})) == [], "it has no score"


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (float("nan"), "acc is nan; a finite number is needed"),
        (float("inf"), "acc is inf; a finite number is needed"),
        ("0.9", "acc is '0.9'; a number is needed"),
        (True, "acc is True; a number is needed"),
        (None, "acc is None; a number is needed"),
        ({"loss": 0.1}, "the score function returned loss, and no 'acc'"),
        ({"acc": 0.5, "loss": float("nan")}, "loss is nan; a finite number is needed"),
        ({"acc": object()}, "metric 'acc': expected a number"),
        ({"acc": 0.5, "a.b": 1}, "metric 'a.b': a name is a non-empty string"),
    ],
)
def test_what_is_no_score_is_noted_and_not_tried_again(filled: TensorDB, result: Any, reason: str) -> None:
    save(filled, 1)
    calls: list[int] = []

    def score(state: Any, batches: Any) -> Any:
        calls.append(1)
        return result

    one = evaluator(filled, score)
    assert one.once() is None and one.once() is None
    assert len(calls) == 1
    ((acc, error),) = fields(filled, "acc", "acc_error").values()
    assert acc is None and error.startswith(reason)
    filled.params.find({"run": "r"}).update({"$unset": {"acc_error": ""}})
    evaluator(filled, by_step).once()
    assert fields(filled, "acc", "acc_error") == {1: (0.1, None)}


def due(db: TensorDB) -> None:
    """Whatever is waited for is over."""
    past = datetime(2020, 1, 1, tzinfo=timezone.utc)
    for doc in db.database["params"].find({"_tdb.claims": {"$exists": True}}):
        paths = [f"_tdb.claims.{key}.until" for key, value in doc["_tdb"]["claims"].items() if isinstance(value, dict)]
        db.database["params"].update_one({"_id": doc["_id"]}, {"$set": dict.fromkeys(paths, past)})


def test_a_score_that_raises_is_tried_a_few_times(filled: TensorDB) -> None:
    save(filled, 1)
    calls: list[int] = []

    def score(state: Any, batches: Any) -> float:
        calls.append(1)
        raise RuntimeError("no memory")

    one = evaluator(filled, score, attempts=2)
    again = one.once()
    assert again is not None and 0 < again <= 2.0 and len(calls) == 1
    due(filled)
    assert one.once() is None and one.once() is None and len(calls) == 2
    assert fields(filled, "acc", "acc_error") == {1: (None, "RuntimeError: no memory")}


def test_a_damaged_set_is_noted_at_once(filled: TensorDB) -> None:
    save(filled, 1)
    place = filled.database["tensors"].find_one({"n": 4000})
    assert place is not None
    stored = Path(filled.warehouse.blobs.store(place["root"]).local_path(place["key"]) or "")
    content = bytearray(stored.read_bytes())
    content[place["o"]] ^= 1
    stored.write_bytes(content)
    evaluator(filled, by_step).once()
    ((error,),) = fields(filled, "acc_error").values()
    assert "'model/w'" in error and "damaged" in error


def test_one_that_was_taken_for_dead_does_not_overwrite(filled: TensorDB) -> None:
    save(filled, 1)

    def late(state: Any, batches: Any) -> float:
        due(filled)
        evaluator(filled, lambda state, batches: 0.7, name="successor").once()
        return 0.1

    evaluator(filled, late, lease=1000.0).once()
    assert fields(filled, "acc") == {1: (0.7,)}
    assert filled.params.find({"step": 1}).first()["provenance"]["acc"]["source"] == "successor"


def test_a_set_deleted_meanwhile_is_nobodys_fault(filled: TensorDB) -> None:
    save(filled, 1)

    def score(state: Any, batches: Any) -> float:
        filled.params.find({"run": "r"}).delete()
        return 0.5

    assert evaluator(filled, score).once() is None


def test_an_architecture_is_built_inside_the_list(filled: TensorDB) -> None:
    filled.params.save(net(3).state_dict(), run="r", step=1)
    filled.params.save(net(4).state_dict(), run="r", step=2)
    filled.architectures.save("net", factory=f"{__name__}:net", kwargs={"width": 3})

    def score(model: Any, batches: Any) -> float:
        return float(model.weight.detach().sum())

    found = filled.architectures.find({"name": "net"})
    with pytest.raises(NotAllowedError, match="not on the list"):
        evaluator(filled, score, model=Built(architecture=found)).once()
    assert fields(filled, "acc", "acc_error") == {1: (None, None), 2: (None, None)}, "no fault of the sets"
    evaluator(filled, score, model=Built(architecture=found, allow=[__name__])).once()
    scores = fields(filled, "acc", "acc_error")
    assert scores[1] == (9.0, None) and scores[2][0] is None and "does not fit" in scores[2][1]


def net(width: int) -> Any:
    import torch

    model = torch.nn.Linear(width, width)
    torch.nn.init.ones_(model.weight)
    return model


def test_refuses_what_cannot_be(filled: TensorDB) -> None:
    sets, data = filled.params.find({"run": "r"}), filled.data.find({"dataset": "d"})
    with pytest.raises(QueryError, match="without a limit"):
        Evaluator(filled, filled.params.find(limit=3), by_step, metric="acc", data=data)
    with pytest.raises(QueryError, match="only samples"):
        Evaluator(filled, sets, by_step, metric="acc", data=sets)  # type: ignore[arg-type]
    with pytest.raises(SchemaError, match="'step'"):
        Evaluator(filled, sets, by_step, metric="step", data=data)
    with pytest.raises(QueryError, match="score is a function"):
        Evaluator(filled, sets, "by_step", metric="acc", data=data)  # type: ignore[arg-type]
    with pytest.raises(QueryError, match="attempts is a number"):
        Evaluator(filled, sets, by_step, metric="acc", data=data, attempts="3")  # type: ignore[arg-type]


def heard(program: Any) -> Iterator[int]:
    for message in iter(program.hear, {"drained": True}):
        if "scoring" in message:
            yield message["scoring"]


def test_two_evaluators_score_each_set_once_and_drain(mongo_uri: str, warehouse_dir: Path) -> None:
    with TensorDB(mongo_uri, blobs=f"file://{warehouse_dir}/blobs") as db, ExitStack() as stack:
        fill(db)
        for step in range(15):
            save(db, step)
        # One that is taken for dead, because this machine is slow, would be succeeded, and score all the same.
        pair = [stack.enter_context(running(programs.evaluate, mongo_uri, name, -1, -1, 600)) for name in "ab"]
        for program in pair:
            program.hear(ready=True)
        with db.params.find({"run": "r", "acc": {"$exists": True}}).watch() as scored:
            for step in range(15, 30):
                save(db, step)
            while db.params.find({"run": "r", "acc": {"$exists": False}}).count():
                next(scored)
        for program in pair:
            program.process.send_signal(signal.SIGTERM)
        steps = [step for program in pair for step in heard(program)]
        assert [program.wait() for program in pair] == [0, 0]
        assert sorted(steps) == list(range(30))
        assert fields(db, "acc") == {step: (step + 0.01,) for step in range(30)}


def test_survives_its_own_death_and_the_servers(warehouse_dir: Path) -> None:
    folder = warehouse_dir / "w"
    with TensorDB(folder) as db:
        fill(db)
        save(db, 1)
        with running(programs.evaluate, folder, "a", 1) as first:
            first.hear(scoring=1)
            first.end(signal.SIGKILL)
        with running(programs.evaluate, folder, "b") as second:
            second.hear(scoring=1)  # when the lease of the first has run out
            kill_server(folder)
            save(db, 2)
            second.hear(scoring=2)
            assert second.end(signal.SIGTERM) == 0
        assert fields(db, "acc") == {1: (1.01,), 2: (2.01,)}


def test_a_set_that_kills_its_evaluators_is_given_up(warehouse_dir: Path, mongo_uri: str) -> None:
    with TensorDB(mongo_uri, blobs=f"file://{warehouse_dir}/blobs") as db:
        fill(db)
        save(db, 1)
        for _ in range(3):
            with running(programs.evaluate, mongo_uri, "a", -1, 1) as program:
                program.hear(scoring=1)
                assert program.wait() == -signal.SIGKILL
        due(db)
        evaluator(db, by_step).once()
        assert fields(db, "acc", "acc_error") == {1: (None, "given up after 3 attempts that ended without a score")}


def test_what_came_while_its_watch_was_lost_is_scored(filled: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oplog of the server no longer reaches back to where the watch was."""
    real, waits = Watch.wait, []

    def wait(self: Watch[Any], seconds: float | None = None) -> bool:
        waits.append(seconds)
        if len(waits) == 1:
            save(filled, 1)
            raise ConnectError("the watch fell behind") from OperationFailure("resume point is gone", 286)
        return real(self, seconds)

    monkeypatch.setattr(Watch, "wait", wait)
    scorer = evaluator(filled, lambda state, batches: scorer.stop() or by_step(state, batches))
    scorer.run()
    assert fields(filled, "acc") == {1: (0.1,)} and len(waits) == 1
