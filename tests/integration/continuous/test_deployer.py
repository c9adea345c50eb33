"""The best set is what is served, whatever dies; what is not fit for service is refused, with the reason."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensordb_data import QueryError, TensorDB
from tensordb_data.continuous import Deployer, deployments, load_deployed
from tensordb_data.errors import DeployError
from tests.integration.continuous import programs
from tests.integration.continuous.programs import kill_server, running, save


def best(db: TensorDB, order: int = -1) -> Any:
    return db.params.find({"run": "r"}, sort=[("acc", order)])


def step_in(folder: Path) -> Any:
    found = load_deployed(folder)
    assert (found.state["w"] == found.about["step"]).all()
    return found.about["step"]


def states(db: TensorDB) -> dict[int | None, tuple[str, int | None]]:
    return {one.step: (one.state, one.version) for one in deployments(db)}


def test_the_best_is_deployed_and_the_ledger_says_so(db: TensorDB, tmp_path: Path) -> None:
    with Deployer(db, best(db), tmp_path) as deployer:
        assert deployer.once() is None
        assert list(tmp_path.glob("current")) == []
        id = save(db, 1, acc=0.5)
        save(db, 2, acc=0.4)
        deployer.once()
        assert step_in(tmp_path) == 1
        save(db, 3, acc=0.6)
        deployer.once()
        deployer.once()
        assert step_in(tmp_path) == 3
        assert states(db) == {1: ("replaced", 1), 3: ("live", 2)}
        (live,) = [one for one in deployments(db) if one.state == "replaced"]
        assert live.id == id and live.run == "r" and live.target.endswith(str(tmp_path))


@pytest.mark.parametrize("order", [1, -1])
def test_a_metric_that_is_none_is_never_the_best(db: TensorDB, tmp_path: Path, order: int) -> None:
    save(db, 1, acc=0.5)
    for step, acc in enumerate([float("nan"), "0.9", float("inf"), -float("inf"), None, [0.1, 0.9]], 2):
        save(db, step, acc=acc)
    save(db, 9)
    with Deployer(db, best(db, order), tmp_path) as deployer:
        deployer.once()
    assert step_in(tmp_path) == 1 and states(db).keys() == {1}


def test_a_set_that_fails_its_check_is_refused_for_good(db: TensorDB, tmp_path: Path) -> None:
    asked: list[int] = []

    def check(state: Any, about: Mapping[str, Any]) -> bool | None:
        asked.append(about["step"])
        if about["step"] == 3:
            raise ValueError("shapes differ")
        return False if about["step"] == 2 else None

    for step in (1, 2, 3):
        save(db, step, acc=step / 10)
    with Deployer(db, best(db), tmp_path, check=check) as deployer:
        deployer.once()
        deployer.once()
        assert asked == [3, 2, 1] and step_in(tmp_path) == 1
        reasons = {one.step: one.reason for one in deployments(db)}
        assert reasons[3] == "check raised ValueError: shapes differ" and reasons[2] == "check said no"
    with Deployer(db, best(db), tmp_path, check=check) as deployer:
        deployer.once()
        assert asked == [3, 2, 1]
        assert deployer.ledger.forgive() == 2
        deployer.once()
        assert asked == [3, 2, 1, 3, 2]


def test_a_damaged_set_is_refused_by_name_and_the_next_is_served(db: TensorDB, tmp_path: Path) -> None:
    save(db, 1, acc=0.1)
    save(db, 2, acc=0.2)
    place = db.database["tensors"].find_one({"n": 4000}, sort=[("created", -1)])
    assert place is not None
    stored = Path(db.warehouse.blobs.store(place["root"]).local_path(place["key"]) or "")
    content = bytearray(stored.read_bytes())
    content[place["o"] + 7] ^= 1
    stored.write_bytes(content)
    with Deployer(db, best(db), tmp_path) as deployer:
        deployer.once()
    assert step_in(tmp_path) == 1
    (refused,) = [one for one in deployments(db) if one.state == "refused"]
    assert refused.step == 2 and refused.reason is not None and "'model/w'" in refused.reason


def test_bytes_that_cannot_be_had_now_are_tried_again_later(db: TensorDB, tmp_path: Path) -> None:
    save(db, 1, acc=0.1)
    save(db, 2, acc=0.2)
    place = db.database["tensors"].find_one({"n": 4000}, sort=[("created", -1)])
    assert place is not None
    stored = Path(db.warehouse.blobs.store(place["root"]).local_path(place["key"]) or "")
    away = stored.rename(stored.with_suffix(".away"))
    with Deployer(db, best(db), tmp_path) as deployer:
        again = deployer.once()
        assert again is not None and step_in(tmp_path) == 1 and states(db).keys() == {1}
        away.rename(stored)
        deployer._later = {id: (0.0, delay) for id, (_, delay) in deployer._later.items()}
        assert deployer.once() is None and step_in(tmp_path) == 2


def test_a_swap_that_fails_is_undone(db: TensorDB, tmp_path: Path) -> None:
    told: list[int] = []

    def notify(about: Mapping[str, Any]) -> None:
        told.append(about["step"])
        if about["step"] == 2:
            raise RuntimeError("the server did not come up")

    save(db, 1, acc=0.1)
    with Deployer(db, best(db), tmp_path, notify=notify) as deployer:
        deployer.once()
        save(db, 2, acc=0.2)
        deployer.once()
        assert told == [1, 2, 1] and step_in(tmp_path) == 1
        assert states(db) == {1: ("live", 1), 2: ("refused", None)}
        save(db, 3, acc=0.3)
        deployer.once()
        assert step_in(tmp_path) == 3


def test_a_function_gets_the_best_and_the_one_before_when_it_fails(db: TensorDB) -> None:
    used: list[tuple[int, int]] = []

    def use(state: Any, about: Mapping[str, Any]) -> None:
        used.append((about["step"], int(np.unique(state["w"]).item())))
        if about["step"] == 2:
            raise RuntimeError("out of memory")

    save(db, 1, acc=0.1)
    with Deployer(db, best(db), use, name="here") as deployer:
        deployer.once()
        save(db, 2, acc=0.2)
        deployer.once()
    assert used == [(1, 1), (2, 2), (1, 1)]
    assert [(one.target, one.step, one.state) for one in deployments(db, "here")] == [
        ("here", 2, "refused"), ("here", 1, "live"),
    ]  # fmt: skip


def test_rolling_back_by_hand_sticks(db: TensorDB, tmp_path: Path) -> None:
    with Deployer(db, best(db), tmp_path) as deployer:
        for step in (1, 2):
            save(db, step, acc=step / 10)
            deployer.once()
        deployer.roll_back("users complain")
        assert step_in(tmp_path) == 1
        deployer.once()
        assert step_in(tmp_path) == 1
        assert states(db) == {1: ("live", 1), 2: ("refused", None)}


def test_a_set_that_is_deleted_stays_deployed(db: TensorDB, tmp_path: Path) -> None:
    save(db, 1, acc=0.1)
    with Deployer(db, best(db), tmp_path) as deployer:
        deployer.once()
        db.params.find({"run": "r"}).delete()
        deployer.once()
        assert step_in(tmp_path) == 1


def test_refuses_what_has_no_best(db: TensorDB, tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="with a sort"):
        Deployer(db, db.params.find({"run": "r"}), tmp_path)
    with pytest.raises(QueryError, match="selection of parameters"):
        Deployer(db, db.data.find(sort=[("x", 1)]), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(DeployError, match="keep="):
        Deployer(db, best(db), tmp_path, keep=0)
    with pytest.raises(DeployError, match="to is a folder"):
        Deployer(db, best(db), 5)  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    for taken in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DeployError, match="cannot hold versions: "):
            Deployer(db, best(db), taken)


def test_follows_the_query_survives_its_death_and_the_servers_and_drains(warehouse_dir: Path) -> None:
    folder, to = warehouse_dir / "w", warehouse_dir / "models"
    with TensorDB(folder) as db:
        save(db, 1, acc=0.1)
        with running(programs.deploy, folder, to) as deployer:
            deployer.hear(live=1)
            save(db, 2, acc=0.2)
            deployer.hear(live=2)
            kill_server(folder)
            save(db, 3, acc=0.3)
            deployer.hear(live=3)
            deployer.end(signal.SIGKILL)
        save(db, 4, acc=0.4)
        with running(programs.deploy, folder, to) as deployer:
            deployer.hear(live=4)
            unscored = save(db, 5)
            db.params.find({"_id": unscored}).update({"$set": {"acc": 0.5}})
            deployer.hear(live=5)
            assert deployer.end(signal.SIGTERM) == 0
        assert step_in(to) == 5
        assert {one.step: one.state for one in deployments(db) if one.state == "live"} == {5: "live"}


def test_kill_9_before_any_rename_leaves_the_folder_whole(mongo_uri: str, warehouse_dir: Path) -> None:
    to, step = warehouse_dir / "models", 1
    with TensorDB(mongo_uri, blobs=f"file://{warehouse_dir}/blobs") as db:
        save(db, step, acc=0.1)
        with Deployer(db, best(db), to) as deployer:
            deployer.once()
        for moment in range(0, 9, 2):  # all of them are in tests/unit/deploy/test_versions.py
            step += 1
            save(db, step, acc=step / 10)
            with running(programs.deploy, mongo_uri, to, moment) as deadly:
                assert deadly.wait() == -signal.SIGKILL
            assert step_in(to) in (step - 1, step)
            with Deployer(db, best(db), to) as deployer:
                deployer.once()
            assert step_in(to) == step
            assert [one.step for one in deployments(db) if one.state == "live"] == [step]
