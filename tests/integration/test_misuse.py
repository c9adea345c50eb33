"""What a user may get wrong: one clear error each, and never a hang, a silent loss or a traceback from the depths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tensordb_data import QueryError, SchemaError, StateError, StorageError, TensorDB
from tensordb_data.api.selection import Selection


@pytest.fixture
def sel(db: TensorDB) -> Selection[Any]:
    with db.data.writer("d") as w:
        w.add_many(x=np.arange(30))
    return db.data.find({"dataset": "d"})


@pytest.mark.parametrize("blobs", ["s3://", "gs:///", "az://", 3])
def test_blobs_nowhere(mongo_uri: str, blobs: Any) -> None:
    with pytest.raises(StorageError, match=r"no bucket|a folder or a URL"):
        TensorDB(mongo_uri, blobs=blobs)


def test_dataset_name_that_is_no_text(db: TensorDB) -> None:
    with pytest.raises(QueryError, match="valid Unicode"):
        db.data.writer("\udc80")


def test_flush_every_that_is_no_number(db: TensorDB) -> None:
    with pytest.raises(ValueError, match="positive number of seconds"):
        db.data.writer("d", flush_every="often")  # type: ignore[arg-type]


def test_field_with_the_name_of_an_argument(db: TensorDB) -> None:
    with db.data.writer("d") as w:
        w.add(**{"self": 1})
        w.add_many(**{"self": [2, 3]})
    assert db.data.find({"dataset": "d"}).distinct("self") == [1, 2, 3]


def test_column_without_an_order(db: TensorDB) -> None:
    with db.data.writer("d") as w, pytest.raises(SchemaError, match="expected a column"):
        w.add_many(x={1, 2})


def test_mask_is_not_lost_silently(db: TensorDB) -> None:
    with db.data.writer("d") as w, pytest.raises(SchemaError, match="masked"):
        w.add(x=np.ma.masked_array([1, 2], [0, 1]))


def test_index_on_nothing(db: TensorDB) -> None:
    with pytest.raises(QueryError, match="field names"):
        db.data.create_index(3)  # type: ignore[arg-type]


def test_numbers_of_numpy(sel: Selection[Any]) -> None:
    stream = sel.stream(batch_size=np.int64(20), seed=np.uint8(3), passes=np.int32(1))  # type: ignore[arg-type]
    assert [len(batch["x"]) for batch in stream] == [20, 10]


@pytest.mark.parametrize("batch_size", [2**31, 10**30])
def test_batches_beyond_all_bounds(sel: Selection[Any], batch_size: int) -> None:
    with pytest.raises(QueryError, match="batch_size"):
        sel.stream(batch_size=batch_size)


@pytest.mark.parametrize("passes", [1, None])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_batch_dropped(sel: Selection[Any], passes: int | None, shuffle: bool) -> None:
    with pytest.raises(QueryError, match="drops everything: a pass has 30 samples"):
        next(iter(sel.stream(batch_size=31, end="drop", passes=passes, shuffle=shuffle)))


def test_datasets_with_nothing_in_common(db: TensorDB, sel: Selection[Any]) -> None:
    with db.data.writer("e") as w:
        w.add(y=1)
    with pytest.raises(QueryError, match="no field that all samples of 'd', 'e' have"):
        next(iter(db.data.find().stream(batch_size=2)))
    assert next(iter(db.data.find().stream(batch_size=2, fields=["dataset"])))["dataset"] == ["d", "d"]


def test_state_that_was_tampered_with(sel: Selection[Any]) -> None:
    stream = sel.stream(batch_size=2, shuffle=True)
    next(iter(stream))
    with pytest.raises(StateError, match="damaged"):
        stream.load_state_dict({**stream.state_dict(), "position": -2})
