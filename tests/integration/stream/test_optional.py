"""Fields that some samples lack: what batches and functions get of them, and what is said."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from tensordb_data import Scalar, TensorDB
from tensordb_data.errors import SampleError


def test_what_is_left_out_of_batches_is_said_once(db: TensorDB, caplog: pytest.LogCaptureFixture) -> None:
    with db.data.writer("left_out") as writer:
        writer.add_many(n=np.arange(4), age=[1, None, 3, 4])
    find = db.data.find({"dataset": "left_out"})
    with caplog.at_level(logging.WARNING, "tensordb_data.stream"):
        for options in ({}, {"shuffle": True}, {}):
            assert [set(batch) for batch in find.stream(4, passes=1, **options)] == [{"n"}]  # type: ignore[arg-type]
        having = db.data.find({"dataset": "left_out", "age": {"$exists": True}})
        assert [batch["age"].tolist() for batch in having.stream(4, ["age"], passes=1)] == [[1, 3, 4]]
    assert caplog.messages == [
        "batches have no 'age', which samples of dataset 'left_out' may lack; name what you need in fields=, and "
        "narrow the query to samples that have it, as {'age': {'$exists': True}}"
    ]


def test_weights_get_the_fields_that_all_samples_have(db: TensorDB) -> None:
    with db.data.writer("d", schema={"n": int, "some": Scalar("int", optional=True)}) as writer:
        ids = writer.add_many(n=np.arange(6), some=[1, None, 1, 1, 1, 1])
    db.data.annotate({id: {"pred": float(row == 2)} for row, id in enumerate(ids)}, source="model")
    find = db.data.find({"dataset": "d"})
    for weights in ("pred", lambda s: s["pred"], lambda s: s["pred"] * (s["n"] + 1)):
        drawn = find.stream(3, ["n"], weights=weights, passes=1)
        assert {n for batch in drawn for n in batch["n"].tolist()} == {2}
    with pytest.raises(SampleError, match=rf"sample {ids[1]} has no 'some'.*\$exists.*name it in fields="):
        next(iter(find.stream(3, ["n"], weights=lambda s: s["some"])))
    seen: list[object] = []
    with pytest.raises(SampleError):
        next(iter(find.stream(3, ["n", "some"], weights=lambda s: seen.append(s["some"]) or 1.0)))
    assert seen == [1, None, 1, 1, 1, 1]
    some = db.data.find({"dataset": "d", "some": {"$exists": True}})
    drawn = some.stream(3, ["n"], weights=lambda s: s["some"], passes=1)
    assert 1 not in {n for batch in drawn for n in batch["n"].tolist()}
