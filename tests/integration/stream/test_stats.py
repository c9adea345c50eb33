"""Where the time of a stream goes: every stage is timed where it takes place, in other processes too."""

from __future__ import annotations

import json
import threading
import types
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from tensordb_data import Bytes, Image, TensorDB, bench
from tensordb_data.cli.main import app
from tensordb_data.errors import QueryError
from tensordb_data.schema.image import Image as ImageField
from tensordb_data.stream.plan import index_reader
from tensordb_data.stream.stats import Clock
from tensordb_data.torch import QueryDataset

N = 24


@pytest.fixture
def photos(db: TensorDB) -> TensorDB:
    with db.data.writer("photos", schema={"photo": Image(), "raw": Bytes(), "label": int}) as writer:
        for number in range(N):
            photo = np.full((8, 8, 3), number, np.uint8)
            writer.add(photo=cv2.imencode(".png", photo)[1].tobytes(), raw=b"abc", label=number)
    return db


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    """A clock of its own for each thread, that stands still unless it is moved: `work` moves both its hands."""
    local = threading.local()

    def move(work: float, wait: float = 0.0) -> None:
        local.wall = getattr(local, "wall", 0.0) + work + wait
        local.cpu = getattr(local, "cpu", 0.0) + work

    monkeypatch.setattr(Clock, "wall", staticmethod(lambda: getattr(local, "wall", 0.0)))
    monkeypatch.setattr(Clock, "cpu", staticmethod(lambda: getattr(local, "cpu", 0.0)))
    yield types.SimpleNamespace(move=move)


def moving(hands: Any, function: Any, work: float, wait: float = 0.0) -> Any:
    def moved(*args: Any, **kwargs: Any) -> Any:
        hands.move(work, wait)
        return function(*args, **kwargs)

    return moved


@pytest.mark.parametrize("shuffle", [False, True])
def test_each_stage_is_timed_where_it_takes_place(
    photos: TensorDB, hands: Any, monkeypatch: pytest.MonkeyPatch, shuffle: bool
) -> None:
    reader = photos.warehouse.blobs.reader
    monkeypatch.setattr(reader, "read", moving(hands, reader.read, 1.0, 2.0))
    monkeypatch.setattr(ImageField, "decode", moving(hands, ImageField.decode, 0.5))
    if not shuffle:
        monkeypatch.setattr(
            index_reader.IndexReader, "_read_on", moving(hands, index_reader.IndexReader._read_on, 0.0, 5.0)
        )
    stream = photos.data.find({"dataset": "photos"}).stream(
        batch_size=8, passes=1, shuffle=shuffle, transform=moving(hands, dict, 0.0, 0.25)
    )
    for _ in stream:
        hands.move(4.0)
    stats = stream.stats()
    reads = stats["stages"]["fetch"]["work"]
    assert reads in (2.0 * tasks for tasks in (1, 2, 3)), "two blob fields a task"
    assert stats["stages"]["fetch"]["wait"] == 2 * reads
    assert stats["stages"]["decode"] == {"work": 0.5 * N, "wait": 0.0}
    assert stats["stages"]["transform"] == {"work": 0.0, "wait": 0.25 * N}
    assert stats["seconds"]["loop"] == 8.0, "the loop is not timed behind the last batch"
    if not shuffle:
        assert stats["stages"]["index"]["wait"] >= 5.0
    assert stats["cache"] == {"hits": 2 * N, "misses": 0}
    assert stats["bottleneck"] == "loop" and "0% of the time" in stats["advice"]


def test_nothing_delivered_has_no_bottleneck(photos: TensorDB) -> None:
    stats = photos.data.find({"dataset": "photos"}).stream(batch_size=8).stats()
    assert stats["bottleneck"] is None and stats["advice"] == "nothing was delivered yet"


def test_waiting_for_commits_is_no_work(photos: TensorDB) -> None:
    stream = photos.data.find({"dataset": "photos"}).stream(batch_size=N, follow=True)
    batches = iter(stream)
    next(batches)
    with photos.data.writer("photos") as writer:
        writer.add(photo=cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes(), raw=b"", label=0)
    next(batches)
    stream.close()
    stages = stream.stats()["stages"]
    assert sum(stages["commits"].values()) > 0 and sum(stages["index"].values()) > 0


@pytest.mark.parametrize("by_sample", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_tells_what_its_workers_did(photos: TensorDB, workers: int, by_sample: bool) -> None:
    selection = photos.data.find({"dataset": "photos"}, fields=["raw", "label"])
    dataset = QueryDataset(selection, batch_size=None if by_sample else 4, passes=1)
    context = "forkserver" if workers else None
    size = 4 if by_sample else None
    loader = DataLoader(dataset, batch_size=size, num_workers=workers, multiprocessing_context=context)
    for passes in (1, 2):
        list(loader)
        stats = dataset.stats()
        assert stats["samples"] == passes * N and stats["cache"] == {"hits": passes * N, "misses": 0}
        assert stats["stages"]["fetch"]["work"] + stats["stages"]["fetch"]["wait"] > 0
        assert stats["bottleneck"] is not None


def test_a_stream_counts_what_went_through_a_dataset(photos: TensorDB) -> None:
    stream = photos.data.find({"dataset": "photos"}, fields=["label"]).stream(batch_size=4)
    list(islice(DataLoader(QueryDataset(stream), batch_size=None), 3))
    assert stream.stats()["samples"] == 12


def test_bench_measures_both_and_leaves_the_stream_where_it_was(photos: TensorDB) -> None:
    stream = photos.data.find({"dataset": "photos"}, fields=["label"]).stream(batch_size=4, shuffle=True)
    next(iter(stream))
    state = stream.state_dict()
    seen: list[int] = []
    found = bench(stream, lambda batch: seen.append(len(batch["label"])), seconds=0.05)
    assert found.samples == 4 * found.batches and set(seen) == {4} and len(seen) > found.batches
    assert found.replayed_per_second is not None and found.speedup is not None
    assert found.speedup == found.replayed_per_second / found.samples_per_second
    assert found.stats is not None and found.stats["samples"] >= found.samples
    assert stream.state_dict() == state
    assert bench(stream, seconds=0.05).speedup is None


def test_bench_takes_any_loader(photos: TensorDB) -> None:
    dataset = QueryDataset(photos.data.find({"dataset": "photos"}, fields=["label", "raw"]), batch_size=7, passes=1)
    found = bench(DataLoader(dataset, batch_size=None), lambda batch: None, seconds=0.05)
    assert found.samples > 0 and found.stats is not None and found.stats["samples"] >= found.samples
    arrays = bench([(np.zeros((3, 2)), np.zeros(3))], lambda batch: None, seconds=0.01)
    assert arrays.samples == 3 * arrays.batches and arrays.stats is None
    with pytest.raises(QueryError, match="no batch"):
        bench([], seconds=0.01)
    with pytest.raises(QueryError, match="follow"):
        bench(photos.data.find({"dataset": "photos"}).stream(batch_size=4, follow=True))


def test_the_command(warehouse_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(warehouse_dir / "w")
    with TensorDB(folder) as db:
        with db.data.writer("d") as writer:
            writer.add_many(image=np.zeros((N, 2, 3), np.uint8), label=np.arange(N))
        run = lambda *args: CliRunner().invoke(app, ["stream", *args, "--db", folder])  # noqa: E731

        spec = json.loads(run("--dataset", "d", "--json").stdout)
        assert spec == {"image": {"dtype": "uint8", "shape": [2, 3]}, "label": {"dtype": "int64", "shape": []}}
        assert "uint8" in run('{"dataset": "d"}').stdout

        short = ["--bench", "--seconds", "0.1", "--batch-size", "5"]
        found = json.loads(run('{"label": {"$lt": 10}}', "--dataset", "d", *short, "--shuffle", "--json").stdout)
        assert found["samples"] > 0 and found["speedup"] is None
        assert found["stats"]["advice"].startswith(found["stats"]["bottleneck"])
        table = run("--dataset", "d", *short, "--step-ms", "1").stdout
        assert "-bound: " in table and "If loading were free" in table and "fetch" in table

        (tmp_path / "steps.py").write_text("def train(batch):\n    assert batch['image'].shape[1:] == (2, 3)\n")
        monkeypatch.chdir(tmp_path)
        assert json.loads(run("--dataset", "d", *short, "--step", "steps:train", "--json").stdout)["speedup"] > 0
        refused = run("--dataset", "d", *short, "--step", "nowhere:train")
        assert refused.exit_code == 2 and "nowhere" in refused.output
        assert run("--dataset", "other", "--bench").exit_code == 1
