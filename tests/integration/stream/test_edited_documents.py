"""Samples that another tool has edited: named where they are read, and by fsck."""

from __future__ import annotations

import datetime as dt
import logging
from typing import Any

import numpy as np
import pytest
from bson import DatetimeMS, Int64, ObjectId

from tensordb_data import Array, Scalar, TensorDB
from tensordb_data.errors import CorruptBlobError, SampleError

N = 12
FAR = DatetimeMS(2**55)


@pytest.fixture
def samples(db: TensorDB) -> list[ObjectId]:
    """Twelve samples of `d`, with one field of each kind."""
    schema = {
        "n": int, "f": float, "ok": bool, "name": str, "at": dt.datetime, "image": Array("uint8", (2,)),
        "text": Array("int64", optional=True), "opt": Scalar("int", optional=True),
    }  # fmt: skip
    with db.data.writer("d", schema=schema) as writer:
        return writer.add_many(
            n=np.arange(N), f=np.arange(N) / 2, ok=True, name=[str(n) for n in range(N)],
            at=[dt.datetime(2024, 1, 1)] * N, image=np.zeros((N, 2), np.uint8), opt=7,
        )  # fmt: skip


def _edit(db: TensorDB, id: ObjectId, change: dict[str, Any]) -> None:
    assert db.database["data"].update_one({"_id": id}, change).modified_count == 1


def test_values_of_another_kind_are_bad_samples(
    db: TensorDB, samples: list[ObjectId], caplog: pytest.LogCaptureFixture
) -> None:
    wrong: list[tuple[str, Any, str]] = [
        ("n", 1.7, "expected int, found float 1.7"),
        ("n", "7", "expected int, found str '7'"),
        ("n", True, "expected int, found bool True"),
        ("f", "x", "expected float, found str 'x'"),
        ("ok", 1, "expected bool, found int 1"),
        ("name", 5, "expected str, found int 5"),
        ("at", FAR, "expected datetime, found DatetimeMS"),
    ]
    for id, (field, value, _) in zip(samples, wrong, strict=False):
        _edit(db, id, {"$set": {field: value}})
    _edit(db, samples[-1], {"$set": {"n": float(N - 1), "f": Int64(3)}})  # the same values, as a shell writes them
    find = db.data.find({"dataset": "d"})
    for options in ({}, {"shuffle": True}):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "tensordb_data.stream"):
            fields = ["n", "f", "ok", "name", "at"]
            batches = list(find.stream(N, fields, passes=1, max_failures=len(wrong), **options))  # type: ignore[arg-type]
        assert sorted(np.concatenate([batch["n"] for batch in batches]).tolist()) == list(range(len(wrong), N))
        assert all(batch["n"].dtype == np.int64 and batch["f"].dtype == np.float64 for batch in batches)
        for id, (field, _, says) in zip(samples, wrong, strict=False):
            assert f"dataset 'd', sample {id}, field {field!r}: {says}" in caplog.text
    with pytest.raises(SampleError, match=f"sample {samples[0]}, field 'n': expected int, found float 1.7"):
        list(find.stream(4, ["n"], passes=1))
    with pytest.raises(SampleError, match=r"a weight must be a number.*Found: '7'"):
        list(find.stream(4, ["n"], passes=1, weights="n"))
    assert find.first()["n"] == 1.7 and len(find.all()) == N  # what is stored is shown as it is
    assert find.all()[6]["at"] == FAR
    found = {(finding.where.split("'")[0], finding.what) for finding in db.fsck().findings}
    assert all((f"sample {id} of dataset ", says) in {(a, b[: len(says)]) for a, b in found}
               for id, (_, _, says) in zip(samples, wrong, strict=False))  # fmt: skip
    assert len(found) == len(wrong)


def test_references_of_another_kind_are_bad_samples(db: TensorDB, samples: list[ObjectId]) -> None:
    segment = db.database["data"].find_one({"_id": samples[0]})["_tdb"]["b"]["image"]["k"]  # type: ignore[index]
    wrong: list[tuple[str, Any]] = [
        ("_tdb.b", 5), ("_tdb.b", [1]), ("_tdb.b.image", "x"), ("_tdb.b.image", []), ("_tdb.b.image.k", "x"),
        ("_tdb.b.image.o", "0"), ("_tdb.b.image.n", 2.0), ("_tdb.b.image", {"d": "xx", "n": 2, "x": 1}),
        ("_tdb.b.image.z", {"k": segment}),
    ]  # fmt: skip
    for id, (path, value) in zip(samples, wrong, strict=False):
        _edit(db, id, {"$set": {path: value}})
    find = db.data.find({"dataset": "d"})
    good = list(range(len(wrong), N))
    for options in ({}, {"shuffle": True}):
        batches = find.stream(N, ["n", "image"], passes=1, max_failures=len(wrong), **options)  # type: ignore[arg-type]
        assert sorted(n for batch in batches for n in batch["n"].tolist()) == good
    for id in samples[: len(wrong)]:
        with pytest.raises(SampleError, match=f"sample {id}.*'image'"):
            list(db.data.find({"_id": id}).stream(1, ["image"], passes=1, shuffle=True))
    for sample in find.all()[2 : len(wrong)]:
        if sample.id != samples[3]:
            with pytest.raises(CorruptBlobError, match=f"sample {sample.id} .* expected a reference"):
                sample["image"]
    assert find.all()[-1]["image"].tolist() == [0, 0]
    db.database["data"].update_one({"_id": samples[-1]}, {"$set": {"_tdb": {"p": 3, "s": "x"}}})
    db.database["datasets"].update_many({}, {"$set": {"schema.text": 3}})
    db.database["segments"].insert_one({"_id": "x", "state": "live"})  # type: ignore[misc]
    db.database["segments"].insert_one({"_id": ObjectId(), "state": "live", "key": "segments/x", "root": 99})
    db.database["tensors"].insert_one({"_id": {"p": "default"}, "state": "live", "key": 1})
    db.database["params"].insert_one({"_id": ObjectId(), "_tdb": 1})
    db.database["architectures"].insert_one({"_id": ObjectId(), "_tdb": {"p": "default", "tensors": [1]}, "name": "m"})
    db.database["tombstones"].insert_one({"_id": ObjectId(), "state": "live", "key": None})
    findings = db.fsck().findings
    for id in samples[: len(wrong)]:
        assert any(str(id) in finding.where and finding.kind == "damaged document" for finding in findings), id
    for name in ("segments x", "tensors ", "params ", "architectures ", "tombstones "):
        assert any(finding.where.startswith(name) and finding.kind == "damaged document" for finding in findings), name
    assert any(finding.kind == "unopened root" and finding.where == "root 99" for finding in findings)
    assert any("no schema that can be read" in finding.what for finding in findings)
