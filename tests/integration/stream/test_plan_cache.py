"""Plans kept on disk: the same plan as from the database, never a stale or damaged one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensordb_data import Array, Scalar, TensorDB
from tensordb_data.errors import CacheWarning
from tensordb_data.stream.passes import plan_reader
from tensordb_data.stream.passes.planner import Planner
from tensordb_data.stream.plan import cache as plan_cache
from tensordb_data.stream.plan.plan import Plan, read_plan

N = 500


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry per plan that was read from the database."""
    found: list[int] = []

    def counted(*args: Any) -> Plan:
        found.append(1)
        return read_plan(*args)

    monkeypatch.setattr(plan_reader, "read_plan", counted)
    return found


@pytest.fixture
def cached(mongo_uri: str, warehouse_dir: Path) -> Any:
    with TensorDB(mongo_uri, blobs=f"file://{warehouse_dir}/blobs", cache=warehouse_dir / "cache") as db:
        schema = {
            "x": Array("uint8", (3,)),
            "y": Array("int16", (None,)),
            "label": Scalar("int"),
            "name": Scalar("str"),
            "score": Scalar("float"),
            "meta": Scalar("json"),
            "day": Scalar("datetime", optional=True),
        }
        for dataset in "ab":
            with db.data.writer(dataset, schema=schema, compression="zstd" if dataset == "b" else None) as writer:
                for i in range(N):
                    writer.add(
                        x=np.full(3, i % 256, np.uint8), y=np.zeros(i % 3 * 400, np.int16), label=i, name=f"é{i}",
                        score=i / 7, meta={"k": [i, None]},
                    )  # fmt: skip
        yield db


def batches(db: TensorDB, **options: Any) -> list[dict[str, Any]]:
    """Those of a process that has just connected: the plan that was used last is kept with the connection."""
    db.warehouse.memo(plan_cache.NewestPlan, plan_cache.NewestPlan)._known = None
    options = {"shuffle": True, "passes": 1, "batch_size": 64, "fields": None, **options}
    return list(db.data.find({"dataset": {"$in": ["a", "b"]}}).stream(**options))


def equal(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> bool:
    def same(a: Any, b: Any) -> bool:
        if isinstance(a, list):
            return len(a) == len(b) and all(map(same, a, b))
        return bool(np.array_equal(a, b)) and getattr(a, "dtype", 0) == getattr(b, "dtype", 0)

    return len(one) == len(two) and all(
        a.keys() == b.keys() and all(same(a[k], b[k]) for k in a) for a, b in zip(one, two, strict=True)
    )


def files(folder: Path) -> list[Path]:
    return sorted((folder / "cache" / "plans").glob("*.plan"))


def test_a_kept_plan_is_the_plan(cached: TensorDB, reads: list[int], warehouse_dir: Path) -> None:
    first = batches(cached)
    assert len(reads) == 1 and len(files(warehouse_dir)) == 1
    assert equal(batches(cached), first) and len(reads) == 1
    by_id = batches(cached, fields=["_id", "dataset", "tags", "label"])
    assert len(reads) == 2 and equal(batches(cached, fields=["_id", "dataset", "tags", "label"]), by_id)
    assert len(reads) == 2


def test_the_plan_that_was_used_last_is_used_again(cached: TensorDB) -> None:
    streams = [cached.data.find({"dataset": "a"}).stream(batch_size=8, shuffle=True) for _ in range(3)]
    one, two = (Planner(cached.warehouse, stream.spec).plan() for stream in streams[:2])
    assert one is two
    cached.data.find({"dataset": "a", "label": 3}).update({"$set": {"score": -1.0}})
    three = Planner(cached.warehouse, streams[2].spec).plan()
    assert three is not two and three.table.values["score"][3] == -1.0
    kept = cached.warehouse.memo(plan_cache.NewestPlan, plan_cache.NewestPlan)
    cached.close()
    assert cached.warehouse.memo(plan_cache.NewestPlan, plan_cache.NewestPlan) is not kept


def test_changed_data_is_read_again(cached: TensorDB, reads: list[int]) -> None:
    batches(cached)
    cached.data.find({"dataset": "a", "label": 3}).update({"$set": {"score": -1.0}})
    changed = batches(cached)
    assert min(batch["score"].min() for batch in changed) == -1.0
    cached.data.find({"dataset": "a", "label": 3}).delete()
    assert sum(len(batch["label"]) for batch in batches(cached)) == 2 * N - 1 and len(reads) == 1  # it was patched
    cached.database["data"].delete_one({"dataset": "a", "label": 4})
    cached.touch("a")
    assert sum(len(batch["label"]) for batch in batches(cached)) == 2 * N - 2 and len(reads) == 2


@pytest.mark.parametrize("where", [0, 9, 20, 100, 5000, -1])
def test_a_damaged_file_is_read_anew(cached: TensorDB, reads: list[int], warehouse_dir: Path, where: int) -> None:
    first = batches(cached)
    (path,) = files(warehouse_dir)
    content = bytearray(path.read_bytes())
    content[where] ^= 0x40
    path.write_bytes(content)
    assert equal(batches(cached), first) and len(reads) == 2
    path.write_bytes(content[: len(content) // 2])
    assert equal(batches(cached), first) and len(reads) == 3
    assert equal(batches(cached), first) and len(reads) == 3


def test_the_least_recently_used_go_first_and_nothing_else(
    cached: TensorDB, reads: list[int], warehouse_dir: Path
) -> None:
    folder = warehouse_dir / "cache" / "plans"
    stream = cached.data.find({"dataset": "a"}).stream(batch_size=8, shuffle=True)
    origin = Planner(cached.warehouse, stream.spec)
    plan = origin.plan()
    size = next(folder.glob("*.plan")).stat().st_size
    (folder / "mine.txt").write_text("not a plan")
    cache = plan_cache.PlanCache(folder, cap=3 * size)
    for age, key in enumerate(["a" * 32, "b" * 32, "c" * 32]):
        cache.store(plan_cache.PlanKey("q" * 32, key), plan)
        os.utime(folder / f"{key}.plan", ns=(age, age))
    for path in folder.glob("*.plan"):
        if path.stem[0] * 32 != path.stem:
            path.unlink()
    cache.store(plan_cache.PlanKey("q" * 32, "d" * 32), plan)
    assert {path.name[:2] for path in folder.iterdir() if path.suffix != ".newest"} == {"bb", "cc", "dd", "mi"}


def test_without_a_place_to_keep_them_plans_stay_in_memory(
    cached: TensorDB, reads: list[int], warehouse_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(warehouse_dir / "cache", ignore_errors=True)  # writers have been here
    (warehouse_dir / "cache").write_text("a file in the way")
    assert len(batches(cached)) == len(batches(cached)) and len(reads) == 2
    assert "cannot keep a plan" in caplog.text


def test_a_sample_costs_about_32_bytes(cached: TensorDB) -> None:
    stream = cached.data.find({"dataset": "a"}).stream(batch_size=8, shuffle=True, fields=["x", "label"])
    assert Planner(cached.warehouse, stream.spec).plan().table.nbytes == 32 * N


def test_a_plan_that_others_can_write_is_not_used(cached: Any, warehouse_dir: Path, reads: list[int]) -> None:
    expected = batches(cached)
    for path in files(warehouse_dir):
        path.chmod(0o666)
    reads.clear()
    with pytest.warns(CacheWarning, match=r"with mode 0666: .*the plan is read from the database"):
        assert equal(batches(cached), expected)
    assert reads
