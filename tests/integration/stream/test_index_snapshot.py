"""A plan is of one state of the data, whatever changes samples meanwhile, and whoever is killed at it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pymongo.errors import OperationFailure

from tensordb_data import BusyError, TensorDB
from tensordb_data.samples import annotate, mutations
from tensordb_data.samples import delete as deletion
from tensordb_data.samples.mutations import Mutation
from tensordb_data.stream.passes import plan_reader
from tensordb_data.stream.passes.planner import Planner
from tensordb_data.stream.plan import index_snapshot
from tensordb_data.stream.plan.index_reader import IndexReader
from tensordb_data.stream.plan.plan import Plan
from tensordb_data.stream.state import State
from tensordb_data.warehouse.context import Warehouse
from tests import warm

N, STEP = 400, 100
OLD, NEW = list(range(N)), list(range(1000, 1000 + N))


@pytest.fixture
def numbers(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> TensorDB:
    """400 samples, whose label is their number; a transaction takes 100."""
    monkeypatch.setattr(mutations, "LIMIT", STEP)
    monkeypatch.setattr(annotate, "LIMIT", STEP)
    monkeypatch.setattr(deletion, "CHUNK", STEP)
    with db.data.writer("numbers") as writer:
        writer.add_many(label=np.arange(N), weight=np.ones(N))
    return db


def everything(db: TensorDB) -> Any:
    return db.data.find({"dataset": "numbers"})


def new_planner(db: TensorDB, **options: Any) -> Planner:
    return Planner(db.warehouse, everything(db).stream(batch_size=10, fields=["label"], shuffle=True, **options).spec)


def labels(plan: Plan) -> list[int]:
    found: list[int] = plan.table.values["label"].tolist()
    return found


def about(db: TensorDB) -> dict[str, Any]:
    found: dict[str, Any] = db.database["datasets"].find_one({"_id.d": "numbers"})
    return found


def add_1000(db: TensorDB) -> None:
    assert everything(db).update({"$inc": {"label": 1000}}) == N


def annotated(db: TensorDB) -> None:
    values = {sample.id: {"label": sample["label"] + 1000} for sample in everything(db)}
    assert db.data.annotate(values, source="me").changed == N


def tagged(db: TensorDB) -> None:
    assert everything(db).tag("seen") == N


def deleted(db: TensorDB) -> None:
    assert everything(db).delete() == N


class Paused:
    """A change in a thread, that stops after some steps."""

    def __init__(self, change: Callable[[], None], steps: int) -> None:
        self._reached, self._go, self._left = threading.Event(), threading.Event(), steps
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(change,))
        original = Mutation.step

        def step(mutation: Mutation, *args: Any) -> int:
            done = original(mutation, *args)
            if threading.current_thread() is self._thread:
                self._left -= 1
                if self._left == 0:
                    self._reached.set()
                    self._go.wait()
            return done

        Mutation.step = step  # type: ignore[assignment, method-assign]
        self._thread.start()
        self._reached.wait()
        Mutation.step = original  # type: ignore[method-assign]

    def _run(self, change: Callable[[], None]) -> None:
        try:
            change()
        except BaseException as error:
            self._error = error
        finally:
            self._reached.set()

    def end(self) -> None:
        self._go.set()
        self._thread.join()
        if self._error is not None:
            raise self._error


@contextmanager
def paused(change: Callable[[], None], steps: int = 2) -> Iterator[Paused]:
    found = Paused(change, steps)
    try:
        yield found
    finally:
        found.end()


@pytest.mark.parametrize("change, after", [(add_1000, NEW), (annotated, NEW), (tagged, OLD), (deleted, [])])
def test_a_plan_that_is_read_in_the_middle_is_of_before_or_after(
    numbers: TensorDB, monkeypatch: pytest.MonkeyPatch, change: Any, after: list[int]
) -> None:
    before = about(numbers)
    with paused(lambda: change(numbers)) as changing:
        (entry,) = about(numbers)["open"]
        assert entry["mut"] == before["mut"] + 1
        monkeypatch.setattr(index_snapshot, "PATIENCE", 0.0)
        waiting = new_planner(numbers)
        plan = waiting.plan()
        assert labels(plan) == OLD and plan.versions == {"numbers": (N, before["mut"])}
        monkeypatch.setattr(index_snapshot, "PATIENCE", 60.0)
        # It waits now: as it looks for the first time, the change goes on and ends.
        monkeypatch.setattr(
            index_snapshot,
            "time",
            SimpleNamespace(monotonic=index_snapshot.time.monotonic, sleep=lambda _: changing.end()),
        )
        plan = new_planner(numbers).plan()
    assert labels(plan) == after and plan.versions == {"numbers": (N, before["mut"] + 2)}
    assert labels(waiting.plan()) == after
    assert about(numbers)["open"] == [] and numbers.database["mutations"].count_documents({}) == 0
    assert about(numbers).get("del", 0) == (about(numbers)["mut"] if change is deleted else 0)


def test_a_small_change_is_one_transaction_and_counts_once(numbers: TensorDB) -> None:
    few = numbers.data.find({"dataset": "numbers", "label": {"$lt": STEP}})
    assert few.update({"$set": {"label": 5}}) == STEP - 1
    assert about(numbers)["mut"] == 1 and "open" not in about(numbers)
    assert few.update({"$set": {"label": 5}}) == 0 and about(numbers)["mut"] == 2
    assert numbers.data.find({"dataset": "numbers", "label": -1}).update({"$set": {"label": 0}}) == 0
    assert about(numbers)["mut"] == 2  # nothing was changed
    assert few.delete() == STEP and about(numbers)["del"] == about(numbers)["mut"] == 3
    assert "open" not in about(numbers)


def test_overlapping_changes_reach_each_sample_once(numbers: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_snapshot, "PATIENCE", 0.0)
    with paused(lambda: add_1000(numbers)), paused(lambda: add_1000(numbers), 3) as second:
        assert [entry["mut"] for entry in about(numbers)["open"]] == [1, 2]
        assert labels(new_planner(numbers).plan()) == OLD
        second.end()
        # The first is open still, with half of it done.
        assert [entry["mut"] for entry in about(numbers)["open"]] == [1]
        assert labels(new_planner(numbers).plan()) == OLD
    plan = new_planner(numbers).plan()
    assert labels(plan) == [2000 + label for label in OLD] and plan.versions == {"numbers": (N, 4)}


def test_a_sample_that_moves_in_the_index_is_changed_once(numbers: TensorDB) -> None:
    by_label = numbers.data.find({"dataset": "numbers", "label": {"$gte": 0}})
    assert by_label.update({"$inc": {"label": 1}}) == N
    limited = numbers.data.find({"dataset": "numbers"}, sort=[("label", 1)], limit=N - 10)
    assert limited.update({"$inc": {"label": 1}}) == N - 10
    assert labels(new_planner(numbers).plan()) == [*range(2, N - 8), *range(N - 9, N + 1)]


@pytest.mark.parametrize("size", [STEP, 10 * N])
def test_changes_that_never_pause_let_plans_through(
    numbers: TensorDB, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(mutations, "LIMIT", size)
    ended, done = threading.Event(), threading.Semaphore(0)

    def change() -> None:
        while not ended.is_set():
            everything(numbers).update({"$inc": {"label": 1}})
            done.release()

    with paused(change, 1) as changing:
        changing._go.set()
        try:
            last = 0
            for before in range(8):  # so many have ended at least
                found = labels(new_planner(numbers).plan())
                assert found == list(range(found[0], found[0] + N)) and found[0] >= max(last, before)
                last = found[0]
                done.acquire()
        finally:
            ended.set()


def test_without_snapshots_a_plan_is_read_again_when_it_was_of_two_states(
    numbers: TensorDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_reader, "_SNAPSHOTS", 0)
    original, changes = plan_reader.read_plan, [1]

    def read(*args: Any) -> Plan:
        plan = original(*args)
        if changes:
            changes.pop()
            add_1000(numbers)
        return plan

    monkeypatch.setattr(plan_reader, "read_plan", read)
    assert labels(new_planner(numbers).plan()) == NEW
    everything(numbers).update({"$inc": {"label": 1}})
    changes += [1] * 10
    with pytest.raises(BusyError, match=r"changed each of the 6 times .* minSnapshotHistoryWindowInSeconds"):
        new_planner(numbers).plan()


def test_a_plan_that_outlasts_its_snapshot_is_read_again(numbers: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    server = numbers.database.client.admin
    window = "minSnapshotHistoryWindowInSeconds"
    kept = server.command({"getParameter": 1, window: 1})[window]
    original, sessions = plan_reader.read_plan, []

    def read(selection: Any, layout: Any, versions: Any, session: Any) -> Plan:
        sessions.append(session)
        while session is not None:
            everything(numbers).update({"$inc": {"label": 1}})
            try:
                selection.collection.find_one({}, session=session)
            except OperationFailure as error:
                assert error.code == 239  # too old
                break
        return original(selection, layout, versions, session)

    monkeypatch.setattr(plan_reader, "read_plan", read)
    server.command({"setParameter": 1, window: 0})
    try:
        plan = new_planner(numbers).plan()
    finally:
        server.command({"setParameter": 1, window: kept})
    assert labels(plan) == [about(numbers)["mut"] // 2 + label for label in OLD]
    assert sessions[-1] is None and len(sessions) == plan_reader._SNAPSHOTS + 1


def test_a_snapshot_outlives_its_cursors(numbers: TensorDB) -> None:
    with index_snapshot.open_snapshot(numbers.warehouse, ["numbers"]) as now:
        layout = new_planner(numbers).layout(now.versions)
        reader = IndexReader(everything(numbers).bound, layout, now.versions, STEP, session=now.session)
        found = []
        for docs, _ in reader:
            found += [doc["label"] for doc in docs]
            add_1000(numbers)
            cursor = reader._cursor
            assert cursor is not None
            if cursor.cursor_id:
                numbers.database.command("killCursors", "data", cursors=[cursor.cursor_id])
    assert found == OLD


def test_weights_are_of_the_same_state(numbers: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    original = plan_reader.read_plan

    def read(*args: Any) -> Plan:
        plan = original(*args)
        everything(numbers).update({"$inc": {"weight": 1, "label": 1000}})
        return plan

    monkeypatch.setattr(plan_reader, "read_plan", read)
    drawn = new_planner(numbers, replacement=True, weights="weight")
    plan = drawn.plan()
    sums = drawn.beside.cumulative_weights(plan)
    assert labels(plan) == OLD and sums is not None and sums[-1] / sums[0] == pytest.approx(N)


def test_what_takes_too_long_is_named(numbers: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_snapshot, "PATIENCE", 0.0)
    monkeypatch.setattr(mutations, "cluster_time", lambda db: None)  # as if it had begun long ago
    monkeypatch.setattr(Warehouse, "cache_dir", None)
    going_on = new_planner(numbers)
    assert labels(going_on.plan()) == OLD
    with paused(lambda: add_1000(numbers)):
        (entry,) = about(numbers)["open"]
        match = rf"'numbers' is being changed since 20.* UTC: update {entry['id']} of process {os.getpid()} on .* 0 s"
        with pytest.raises(BusyError, match=match):
            new_planner(numbers).plan()
        assert labels(going_on.plan()) == OLD  # the plan that it has
        with pytest.raises(BusyError):
            going_on.has_changed(State(versions={"numbers": (N, 99)}, ids="0"))
    assert labels(going_on.plan()) == NEW


def test_a_plan_of_before_that_is_kept_is_used(numbers: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_snapshot, "PATIENCE", 0.0)
    monkeypatch.setattr(mutations, "cluster_time", lambda db: None)
    assert labels(new_planner(numbers).plan()) == OLD
    with paused(lambda: add_1000(numbers)):
        monkeypatch.setattr(plan_reader, "read_plan", None)
        assert labels(new_planner(numbers).plan()) == OLD


def test_one_that_was_taken_for_dead_goes_on(numbers: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutations, "LEASE", 0.0)
    with paused(lambda: add_1000(numbers)) as changing:
        plan = new_planner(numbers).plan()  # of half of it: its lease has run out
        assert sorted(labels(plan)) == [*range(200, 400), *range(1000, 1200)] and about(numbers)["open"] == []
        changing.end()
    assert labels(new_planner(numbers).plan()) == NEW and about(numbers)["open"] == []


@pytest.mark.parametrize("committed", [False, True])
def test_a_server_that_is_killed_in_the_middle_changes_no_sample_twice(
    warehouse_dir: Path, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    monkeypatch.setattr(mutations, "LIMIT", STEP)
    body, step = mutations._Step.__call__, Mutation.step
    steps: list[int] = []

    def kill(now: bool) -> None:
        if now and len(steps) == 1:
            steps.append(0)
            os.kill(db.database.client.admin.command("serverStatus")["pid"], signal.SIGKILL)

    def within(self: Any, session: Any) -> int:
        count = body(self, session)
        kill(not committed)
        return count

    def between(*args: Any) -> int:
        count = step(*args)
        steps.append(count)
        kill(committed)
        return count

    monkeypatch.setattr(mutations._Step, "__call__", within)
    monkeypatch.setattr(Mutation, "step", between)
    with TensorDB(warehouse_dir) as db:
        with db.data.writer("numbers") as writer:
            writer.add_many(label=np.arange(N), weight=np.ones(N))
        add_1000(db)
        assert 0 in steps and labels(new_planner(db).plan()) == NEW and about(db)["open"] == []


CHANGER = """
import os, signal, sys
from tensordb_data import TensorDB
from tensordb_data.samples import mutations

mutations.LIMIT, mutations.LEASE, where = int(sys.argv[3]), 2.0, sys.argv[4]

def stop():
    print("stopped", flush=True)
    sys.stdin.readline()

def within(self, session, body=mutations._Step.__call__, done=[]):
    count = body(self, session)
    done.append(count)
    if where == "in" and (len(done) == 3 or mutations.LIMIT > 400):
        stop()
    return count

def between(self, *args, step=mutations.Mutation.step, done=[]):
    done.append(step(self, *args))
    if where == "between" and len(done) == 2:
        stop()
    return done[-1]

mutations._Step.__call__ = within
mutations.Mutation.step = between
with TensorDB(sys.argv[1], blobs=sys.argv[2]) as db:
    db.data.find({"dataset": "numbers"}).update({"$inc": {"label": 1000}})
"""


@contextmanager
def stopped(uri: str, folder: Path, limit: int, where: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", CHANGER, uri, f"file://{folder}/blobs", str(limit), where]
    with warm.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "stopped\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("where", ["between", "in"])
def test_one_that_is_killed_is_waited_for_and_then_has_ended(
    numbers: TensorDB, mongo_uri: str, warehouse_dir: Path, where: str
) -> None:
    with stopped(mongo_uri, warehouse_dir, STEP, where) as process:
        process.kill()
        process.wait()
    assert [entry["pid"] for entry in about(numbers)["open"]] == [process.pid]
    plan = new_planner(numbers).plan()
    assert sorted(labels(plan)) == [*range(200, 400), *range(1000, 1200)]  # what it has done, in whole transactions
    assert plan.versions == {"numbers": (N, 2)} and about(numbers)["open"] == []
    add_1000(numbers)
    assert sorted(labels(new_planner(numbers).plan())) == [*range(1200, 1400), *range(2000, 2200)]


def test_a_small_one_that_is_killed_has_done_nothing(numbers: TensorDB, mongo_uri: str, warehouse_dir: Path) -> None:
    with stopped(mongo_uri, warehouse_dir, 10 * N, "in") as process:
        plan = new_planner(numbers).plan()
        process.kill()
        process.wait()
    assert labels(plan) == OLD and plan.versions == {"numbers": (N, 0)}
    add_1000(numbers)
    assert labels(new_planner(numbers).plan()) == NEW
