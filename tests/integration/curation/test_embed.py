"""`db.data.embed`: vectors of samples by any model, taken up where a call was killed, and never of two models."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from tensordb_data import Array, QueryError, SampleError, SchemaError, TensorDB
from tensordb_data.curation import embed as module

N = 10


def fill(db: TensorDB, n: int = N, dataset: str = "d") -> None:
    with db.data.writer(dataset) as w:
        w.add_many(
            x=np.arange(2 * n, dtype=np.float32).reshape(n, 2), label=np.arange(n), text=[f"no {i}" for i in range(n)]
        )


def double(batch: Any) -> Any:
    return 2 * batch["x"]


def vectors(db: TensorDB, field: str = "embedding") -> Any:
    return np.stack([sample[field] for sample in db.data.find({"dataset": "d"})])


def test_vectors_are_fields_with_provenance_and_are_computed_once(db):
    fill(db)
    sel = db.data.find({"dataset": "d"})
    done = db.data.embed(sel, double, batch_size=3, source="model:a@1")
    assert (done.embedded, done.there, done.failed, done.gone) == (N, 0, 0, 0)
    assert db.data.schema("d")["embedding"] == Array("float32", (2,), optional=True)
    assert (vectors(db) == 2 * np.arange(2 * N).reshape(N, 2)).all()
    assert db.data.find({"provenance.embedding.source": "model:a@1"}).count() == N
    assert sel.similar(to=vectors(db)[4], k=1)[0]["label"] == 4 and db.fsck().findings == []
    with db.data.writer("d") as w:
        w.add(x=np.array([1, 1], np.float32), label=10, text="new")
    asked: list[int] = []
    done = db.data.embed(sel, double, source="model:a@1", progress=lambda done, all: asked.append(done / all))
    assert (done.embedded, done.there) == (1, N) and asked == [1]
    assert db.data.embed(sel, double, source="model:a@1").embedded == 0


def test_vectors_of_two_models_are_not_beside_each_other(db):
    fill(db)
    sel = db.data.find({"dataset": "d"})
    db.data.embed(sel, double)
    assert sel.first()["provenance"]["embedding"]["source"] == "embed:double"
    with pytest.raises(QueryError, match=r"'embedding' already, of 'embed:double', and not of 'b'.*replace=True"):
        db.data.embed(sel, double, source="b")
    done = db.data.embed(sel, lambda batch: batch["x"] + 1, source="b", replace=True)
    assert done.embedded == N and (vectors(db) == np.arange(2 * N).reshape(N, 2) + 1).all()
    db.data.embed(sel, lambda batch: np.ones((len(batch["label"]), 5)), "other")
    assert vectors(db, "other").shape == (N, 5)


@pytest.mark.parametrize("inputs", ["x", ["x"], ["x", "label"], None])
def test_what_the_model_gets(db, inputs):
    fill(db)
    got: list[Any] = []

    def model(given: Any) -> Any:
        got.append(given)
        return np.zeros((N, 3), np.float16)

    db.data.embed(db.data.find(), model, inputs=inputs)
    given = got[0]
    if inputs == "x":
        assert given.shape == (N, 2)
    else:
        assert list(given) == (inputs or ["x", "label", "text"]) and given["x"].shape == (N, 2)


def test_models_of_frameworks(db):
    fill(db)
    sel = db.data.find({"dataset": "d"})
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Dropout(0.9)).train()
    with pytest.raises(QueryError, match="a module of PyTorch takes one field"):
        db.data.embed(sel, net)
    db.data.embed(sel, net, "a", inputs="x")
    assert net.training and torch.is_grad_enabled()
    expected = net[0](torch.from_numpy(np.stack([sample["x"] for sample in sel]))).detach().numpy()
    assert np.allclose(vectors(db, "a"), expected, atol=1e-5)  # without dropout

    with pytest.raises(QueryError, match="give a transform="):
        db.data.embed(sel, net, "c", inputs="text")

    class Encoder:
        def encode(self, texts: list[str]) -> Any:
            return torch.tensor([[len(text), 1.0] for text in texts], dtype=torch.bfloat16)

    db.data.embed(sel, Encoder(), "b", inputs="text")
    assert vectors(db, "b").dtype == np.float32 and vectors(db, "b")[0].tolist() == [4, 1]


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        (lambda batch: batch["x"][:-1], QueryError, r"shape \(10, \.\.\.\).*found float32 of shape \(9, 2\)"),
        (lambda batch: np.zeros(N), QueryError, r"found float64 of shape \(10,\)"),
        (lambda batch: [["a"]] * N, QueryError, "found <U1"),
        (lambda batch: None, QueryError, "found object"),
        (lambda batch: [[1], [1, 2]], QueryError, "must give an array"),
        (5, QueryError, "a model is a function of a batch"),
    ],
)
def test_models_that_give_something_else(db, given, error, match):
    fill(db)
    with pytest.raises(error, match=match):
        db.data.embed(db.data.find(), given)
    assert "embedding" not in db.data.schema("d")


def test_what_is_refused(db):
    fill(db)
    sel = db.data.find({"dataset": "d"})
    for options, match in (
        ({"inputs": "embedding"}, "is an input"), ({"inputs": []}, "inputs="), ({"inputs": 5}, "inputs="),
        ({"source": ""}, "source="), ({"batch_size": 0}, "batch_size"), ({"inputs": "none"}, "no field 'none'"),
    ):  # fmt: skip
        with pytest.raises(QueryError, match=match):
            db.data.embed(sel, double, **options)
    with pytest.raises(QueryError, match="only samples are embedded"):
        db.data.embed(db.logs.find({"run": "r"}), double)
    with pytest.raises(SchemaError, match="label"):
        db.data.embed(sel, double, "label")


def test_a_limited_selection_embeds_these_and_no_others(db):
    fill(db)
    sel = db.data.find({"dataset": "d"}, sort=[("label", -1)], limit=3)
    assert db.data.embed(sel, double).embedded == 3
    assert [s["label"] for s in db.data.find({"embedding": {"$exists": True}})] == [7, 8, 9]


def test_a_bad_sample_and_a_deleted_one(db):
    fill(db)

    def picky(sample: Any) -> Any:
        if sample["label"] == 3:
            raise ValueError("no")
        return sample

    with pytest.raises(SampleError):
        db.data.embed(db.data.find(), double, transform=picky)

    def deleting(batch: Any) -> Any:
        db.data.find({"label": 5}).delete()
        return double(batch)

    done = db.data.embed(db.data.find(), deleting, transform=picky, max_failures=1)
    assert (done.embedded, done.failed, done.gone) == (8, 1, 1)


def test_a_call_that_was_killed_is_taken_up(db, mongo_uri, monkeypatch):
    fill(db)
    script = (
        "import os, signal, sys; from tensordb_data import TensorDB\n"
        "from tensordb_data.curation import embed; embed._SAMPLES = 2\n"
        "db = TensorDB(sys.argv[1]); calls = []\n"
        "def model(batch):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return 2 * batch['x']\n"
        "db.data.embed(db.data.find(), model, batch_size=2, source='m')\n"
    )
    blobs = {"TENSORDB_ROOTS": db.warehouse.blobs.roots[0]["url"]}
    run = [sys.executable, "-c", script, mongo_uri]
    assert subprocess.run(run, env={**os.environ, **blobs}).returncode == -signal.SIGKILL
    monkeypatch.setattr(module, "_SAMPLES", 2)
    done = db.data.embed(db.data.find(), double, batch_size=2, source="m")
    assert (done.embedded, done.there) == (4, 6)
    assert (vectors(db) == 2 * np.arange(2 * N).reshape(N, 2)).all()
