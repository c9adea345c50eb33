"""What a Keras user does: fit on a query, a save every N optimizer steps, and a resume."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from tensordb_data import Selection, TensorDB
from tensordb_data.tf import StepCheckpoint, query_dataset

pytestmark = pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")


@pytest.fixture
def sel(db: TensorDB) -> Selection[Any]:
    digits = load_digits()
    with db.data.writer("digits") as w:
        w.add_many(image=digits.images.astype(np.uint8), label=digits.target.astype(np.int64))
    return db.data.find({"dataset": "digits"})


def network() -> Any:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.layers.Input((8, 8)), keras.layers.Rescaling(1 / 16), keras.layers.Flatten(), keras.layers.Dense(10)]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def test_fit_with_saves_and_a_resume(db: TensorDB, sel: Selection[Any]) -> None:
    def fit(run: str, epochs: int) -> Any:
        model = network()
        stream = sel.stream(batch_size=64, shuffle=True, seed=0)
        ds = query_dataset(stream)
        ckpt = StepCheckpoint(db, run=run, every=20, stream=stream)
        ckpt.restore(model)
        model.fit(
            ds.map(lambda b: (b["image"], b["label"])),
            steps_per_epoch=20, epochs=epochs, callbacks=[ckpt], verbose=0,
        )  # fmt: skip
        return model

    whole = fit("whole", 3)
    fit("cut", 2)
    resumed = fit("cut", 1)
    assert int(resumed.optimizer.iterations) == 60
    for ours, theirs in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        assert np.array_equal(ours, theirs)
    assert [params.step for params in db.params.find({"run": "cut"}, sort=[("step", 1)])] == [20, 40, 60]


def test_over_a_selection(sel: Selection[Any]) -> None:
    ds = query_dataset(sel, batch_size=64, passes=1)
    assert set(ds.element_spec) == {"image", "label"}
    assert sum(len(batch["label"]) for batch in ds) == 1797
