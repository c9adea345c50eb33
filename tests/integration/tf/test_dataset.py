"""query_dataset: the batches of the stream, with static specs, wherever tf.data and Keras take a dataset."""

from __future__ import annotations

import gc
import itertools
import json
import threading
from collections.abc import Iterable
from typing import Any

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from tensordb_data import Array, Image, TensorDB
from tensordb_data.api.selection import Selection
from tensordb_data.errors import NotFoundError, QueryError
from tensordb_data.tf import query_dataset

N = 301


@pytest.fixture
def sel(db: TensorDB) -> Selection[Any]:
    images = np.arange(N * 6, dtype=np.uint16).reshape(N, 2, 3)
    with db.data.writer("numbers") as writer:
        writer.add_many(image=images, label=np.arange(N), name=[f"é{i}" for i in range(N)])
    return db.data.find({"dataset": "numbers"})


def labels(batches: Iterable[dict[str, Any]]) -> list[list[int]]:
    return [np.asarray(batch["label"]).tolist() for batch in batches]


def test_specs_are_static_and_values_are_those_of_the_stream(sel: Selection[Any]) -> None:
    stream = sel.stream(batch_size=16, shuffle=True, passes=2)
    dataset = query_dataset(stream)
    assert dataset.element_spec == {
        "image": tf.TensorSpec([None, 2, 3], tf.uint16),
        "label": tf.TensorSpec([None], tf.int64),
        "name": tf.TensorSpec([None], tf.string),
    }
    found, expected = list(dataset), list(stream)
    assert len(found) == len(expected) == 38
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours["image"], theirs["image"]) and np.array_equal(ours["label"], theirs["label"])
        assert [name.decode() for name in ours["name"].numpy()] == theirs["name"]


def test_the_batch_dimension_is_known_when_every_batch_is_full(sel: Selection[Any]) -> None:
    for end, batches in (("drop", 18), ("pad", 19)):
        dataset = query_dataset(sel, batch_size=16, fields=["label"], passes=1, end=end)
        assert dataset.element_spec == {"label": tf.TensorSpec([16], tf.int64)}
        assert [len(batch) for batch in labels(dataset)] == [16] * batches


def test_iterations_start_where_the_stream_stands_and_do_not_move_it(sel: Selection[Any]) -> None:
    stream = sel.stream(batch_size=16, fields=["label"], shuffle=True)
    dataset = query_dataset(stream)
    first = labels(dataset.take(40))
    assert labels(dataset.take(40)) == first
    assert labels(itertools.islice(stream, 5)) == first[:5]
    assert labels(dataset.take(35)) == first[5:]
    state = stream.advance(stream.state_dict(), 20)
    stream.load_state_dict(state)
    assert labels(dataset.take(15)) == first[25:]


def test_two_iterators_at_once(sel: Selection[Any]) -> None:
    dataset = query_dataset(sel, batch_size=16, fields=["label"], shuffle=True)
    assert all(a == b for a, b in zip(labels(dataset.take(30)), labels(dataset.take(30)), strict=True))
    pairs = tf.data.Dataset.zip((dataset, dataset)).take(30)
    assert all(np.array_equal(a["label"], b["label"]) for a, b in pairs)


def test_a_change_is_seen_by_a_pass_that_begins_after_it_and_a_resume_ends_its_pass(db: TensorDB) -> None:
    with db.data.writer("large") as writer:  # batches of 4 MB, of which tf.data reads few ahead
        writer.add_many(image=np.zeros((64, 512, 512), np.uint8), label=np.arange(64))
    sel = db.data.find({"dataset": "large"})
    stream = sel.stream(batch_size=16, shuffle=True)
    start, got = stream.state_dict(), []
    for number, batch in enumerate(query_dataset(stream).take(16)):
        if number == 1:
            sel.update({"$inc": {"label": 1000}})
        got += labels([batch])
    passes = [sorted(itertools.chain(*got[first : first + 4])) for first in range(0, 16, 4)]
    old, new = list(range(64)), list(range(1000, 1064))
    assert passes[0] == old and passes[1] in (old, new) and passes[2:] == [new, new]
    state = stream.advance(start, 9)
    assert state["pass"] == 2
    again = sel.stream(batch_size=16, shuffle=True)
    again.load_state_dict(state, plans=stream.plans(state))
    sel.update({"$inc": {"label": 1000}})
    rest = labels(query_dataset(again).take(5))
    assert rest[:3] == got[9:12] and all(min(batch) >= 2000 for batch in rest[3:])


def test_an_abandoned_iterator_stops_its_threads(sel: Selection[Any]) -> None:
    before = set(threading.enumerate())
    iterator = iter(query_dataset(sel, batch_size=16))
    next(iterator)
    del iterator
    gc.collect()
    ours = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("tensordb")]
    for thread in ours:
        thread.join(10)
    assert not any(thread.is_alive() for thread in ours)


def test_dimensions_that_vary_are_unknown(db: TensorDB) -> None:
    with db.data.writer("waves", schema={"wave": Array("float32", (None, 2)), "any": Array("uint8")}) as writer:
        for i in range(8):
            writer.add(wave=np.full((1 + i // 4, 2), i, np.float32), any=np.zeros((i // 4, 3), np.uint8))
    sel = db.data.find({"dataset": "waves"})
    dataset = query_dataset(sel, batch_size=4, passes=1)
    assert dataset.element_spec["wave"] == tf.TensorSpec([None, None, 2], tf.float32)
    assert dataset.element_spec["any"] == tf.TensorSpec([None, None, None], tf.uint8)
    assert [tuple(batch["wave"].shape) for batch in dataset] == [(4, 1, 2), (4, 2, 2)]
    with pytest.raises(tf.errors.OpError, match="'wave': the arrays of one batch differ in shape"):
        list(query_dataset(sel, batch_size=8, fields=["wave"], passes=1))
    with pytest.raises(QueryError, match="'any': the arrays of one batch differ in shape"):
        query_dataset(sel, batch_size=8, fields=["any"])


def test_a_transform_decides_the_spec(sel: Selection[Any]) -> None:
    def halved(sample: dict[str, Any]) -> dict[str, Any]:
        return {"x": sample["image"].astype(np.float32) / 2, "label": sample["label"]}

    dataset = query_dataset(sel, batch_size=8, transform=halved)
    assert dataset.element_spec["x"] == tf.TensorSpec([None, 2, 3], tf.float32)
    assert float(next(iter(dataset))["x"][0, 0, 1]) == 0.5


def test_values_without_a_tensor_form(db: TensorDB) -> None:
    with db.data.writer("meta") as writer:
        writer.add(meta={"a": 1}, label=1)
    sel = db.data.find({"dataset": "meta"})
    with pytest.raises(QueryError, match="'meta': dict values have no tensor form"):
        query_dataset(sel, batch_size=2)
    with pytest.raises(NotFoundError, match="nothing matches"):
        query_dataset(sel & {"label": 0}, batch_size=2, passes=1)
    assert labels(query_dataset(sel, batch_size=2, fields=["label"], passes=1)) == [[1]]


def test_options_belong_to_one_side(sel: Selection[Any]) -> None:
    with pytest.raises(QueryError, match="a Selection needs a `batch_size` here"):
        query_dataset(sel)
    with pytest.raises(QueryError, match="a stream has its own options: give batch_size, seed to"):
        query_dataset(sel.stream(batch_size=2), batch_size=2, seed=1)
    with pytest.raises(QueryError, match="a stream is needed here; found a int"):
        query_dataset(3)  # type: ignore[arg-type]


def _model() -> Any:
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(4)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.mark.filterwarnings("ignore:Your input ran out of data", "ignore:`shuffle=True` was passed")
def test_keras_fits_on_it(sel: Selection[Any]) -> None:
    seen: list[list[int]] = []

    def pair(batch: dict[str, Any]) -> tuple[Any, Any]:
        tf.numpy_function(lambda label: seen.append(label.tolist()), [batch["label"]], [])
        return tf.cast(batch["image"], tf.float32) / 2000.0, batch["label"] % 4

    endless = query_dataset(sel, batch_size=16, shuffle=True)
    assert endless.cardinality() == tf.data.INFINITE_CARDINALITY
    dataset = endless.map(pair).prefetch(2)
    history = _model().fit(dataset, steps_per_epoch=8, epochs=3, verbose=0)
    assert len(history.history["loss"]) == 3
    # One sequence over all epochs: nothing is repeated before the pass is through.
    assert seen[:24] == labels(query_dataset(sel, batch_size=16, shuffle=True).take(24))
    finite = query_dataset(sel, batch_size=16, passes=1).map(pair)
    assert len(_model().fit(finite, epochs=2, verbose=0).history["loss"]) == 2


def test_each_worker_of_a_cluster_gets_its_own_batches(sel: Selection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    off = tf.data.experimental.AutoShardPolicy.OFF
    options: dict[str, Any] = {"batch_size": 16, "fields": ["label"], "shuffle": True, "passes": 1}
    assert query_dataset(sel, **options).options().experimental_distribute.auto_shard_policy != off
    given = query_dataset(sel, **options, rank=1, world_size=2).options()
    assert given.experimental_distribute.auto_shard_policy == off
    got = []
    for task in ({"type": "chief", "index": 0}, {"type": "worker", "index": 0}, {"type": "worker", "index": 1}):
        cluster = {"chief": ["a:1"], "worker": ["b:1", "c:1"], "ps": ["d:1"]}
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
        dataset = query_dataset(sel, **options)
        assert dataset.options().experimental_distribute.auto_shard_policy == off
        got.append(labels(dataset))
    assert len({len(batches) for batches in got}) == 1
    assert sorted(itertools.chain(*itertools.chain(*got))) == list(range(N))
    monkeypatch.setenv("TF_CONFIG", "worker 0")
    with pytest.raises(QueryError, match=r"\$TF_CONFIG is not the JSON of a cluster and a task"):
        query_dataset(sel, **options)


@pytest.mark.parametrize("options", [{"batch_tokens": 64, "ragged": "pad"}, {"batch_size": 2, "pack": 32}])
def test_batches_of_sequences_are_those_of_the_stream(db: TensorDB, options: dict[str, Any]) -> None:
    with db.data.writer("texts", schema={"tokens": Array("int32", (None,)), "number": int}) as writer:
        for number in range(40):
            writer.add(tokens=np.full(1 + number * 7 % 30, number, np.int32), number=number)
    stream = db.data.find({"dataset": "texts"}).stream(**options, shuffle=True, passes=1, end="pad")
    dataset = query_dataset(stream)
    found, expected = list(dataset), list(stream)
    assert len(found) == len(expected) > 5
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys() == dataset.element_spec.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert dataset.element_spec["tokens"].shape.as_list() == [None, options.get("pack")]


def test_encoded_images_are_strings(db: TensorDB) -> None:
    files = [cv2.imencode(".png", np.full((2 + n, 3), n, np.uint8))[1].tobytes() for n in range(5)]
    with db.data.writer("photos", schema={"image": Image("gray")}) as writer:
        writer.add_many(image=files)
    photos = db.data.find({"dataset": "photos"})
    dataset = query_dataset(photos, batch_size=2, passes=1, decode={"image": False})
    assert dataset.element_spec == {"image": tf.TensorSpec([None], tf.string)}
    assert [one for batch in dataset for one in batch["image"].numpy().tolist()] == files
