"""A fit that was interrupted and resumed ends with the weights of one that was not."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tensordb_data import TensorDB
from tensordb_data.errors import CheckpointError, StateError
from tensordb_data.stream.order.permutation import pass_key, shuffled
from tensordb_data.tf import StepCheckpoint, query_dataset
from tests.integration.checkpoint.loops import fill


def net(width=16, steps_per_execution=1):
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((8,)),
        keras.layers.Dense(width, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(3),
    ]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"], steps_per_execution=steps_per_execution)
    return model


def fit(db, run, epochs, *, done=0, every=10, steps=20, restore=False, model=None, **options):
    model = net(**options) if model is None else model
    stream = db.data.find({"dataset": "x"}).stream(batch_size=16, shuffle=True, seed=0)
    dataset = query_dataset(stream).map(lambda batch: (batch["image"], batch["label"])).prefetch(4)
    ckpt = StepCheckpoint(db, run=run, every=every, stream=stream)
    start = ckpt.restore(model) if restore else 0
    model.fit(dataset, epochs=epochs, initial_epoch=done, steps_per_epoch=steps, callbacks=[ckpt], verbose=0)
    return start, model


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a.get_weights(), b.get_weights(), strict=True))


@pytest.mark.parametrize("steps_per_execution", [1, 8])
def test_weights_are_equal(db, steps_per_execution):
    fill(db)
    _, whole = fit(db, "whole", 3, steps=24, every=12, steps_per_execution=steps_per_execution)
    fit(db, "cut", 2, steps=24, every=12, steps_per_execution=steps_per_execution)
    start, resumed = fit(
        db, "cut", 3, steps=24, every=12, done=2, restore=True, steps_per_execution=steps_per_execution
    )
    assert start == 48 and equal(whole, resumed)
    steps = sorted(db.params.find({"run": "whole"}).distinct("step"))
    assert steps == ([12, 24, 36, 48, 60, 72] if steps_per_execution == 1 else [16, 24, 40, 48, 64, 72])


def test_weights_are_equal_under_a_strategy(db):
    """Mirrored variables, and a restore outside of the scope of the strategy."""
    fill(db)
    with tf.distribute.MirroredStrategy(["/cpu:0"]).scope():
        first, second, third = net(), net(), net()
    _, whole = fit(db, "whole", 2, model=first)
    fit(db, "cut", 1, model=second)
    start, resumed = fit(db, "cut", 2, done=1, restore=True, model=third)
    assert start == 20 and equal(whole, resumed)


def test_in_the_middle_of_an_epoch_and_tf_data_ahead(db):
    """The resumed fit begins its epoch anew, with the batches that come next."""
    fill(db)
    _, whole = fit(db, "whole", 1, steps=30)
    fit(db, "cut", 1, steps=14)
    start, resumed = fit(db, "cut", 1, steps=20, restore=True)
    assert start == 10 and equal(whole, resumed)


def test_data_that_changed_meanwhile_and_a_resume_on_another_host(db, mongo_uri, warehouse_dir):
    """The pass ends as it began, with the plan that the save holds; the next one sees the changes."""
    fill(db)
    _, whole = fit(db, "whole", 1, steps=13)  # one pass of 200 samples
    fit(db, "cut", 1, steps=10)
    found = db.data.find({"dataset": "x"})
    found.update({"$set": {"label": 0}})
    trained_on = int(shuffled(np.arange(1), 200, pass_key(0, 0))[0]) + 1
    gone = db.database["data"].find_one({"_tdb.s": trained_on})
    assert db.data.find({"_id": gone["_id"]}).delete() == 1
    with db.data.writer("x") as w:
        w.add_many(image=np.zeros((30, 8), "f4"), label=np.zeros(30, np.int64))
    with TensorDB(mongo_uri, blobs=f"file://{warehouse_dir}/blobs", cache=warehouse_dir / "there") as there:
        start, resumed = fit(there, "cut", 1, steps=3, every=1, restore=True)
        assert start == 10 and equal(whole, resumed)
        stream = there.params.find({"run": "cut"}, sort=[("step", -1)]).first().load("stream")
        assert (stream["pass"], stream["position"]) == (1, 0)
        assert fit(there, "cut", 1, steps=2, every=1, restore=True)[0] == 13
        stream = there.params.find({"run": "cut"}, sort=[("step", -1)]).first().load("stream")
        assert (stream["pass"], stream["n"]) == (1, 229)


def test_a_finite_stream_is_refused(db):
    fill(db)
    stream = db.data.find({"dataset": "x"}).stream(batch_size=16, passes=1)
    with pytest.raises(CheckpointError, match="passes=1"):
        StepCheckpoint(db, run="r", every=1, stream=stream)


def test_found_logged_and_loaded(db):
    fill(db)
    _, model = fit(db, "k", 2)
    best = db.params.find({"run": "k"}, sort=[("accuracy", -1)]).first()
    other = net()
    best.load_into(other)
    newest = db.params.find({"run": "k", "step": 40}).first()
    newest.load_into(other)
    assert equal(model, other)
    other.set_weights(list(newest.load().values()))
    id = db.params.save(model.get_weights())
    db.params.find({"_id": id}).first().load_into(other)
    assert db.logs.find({"run": "k", "kind": "train"}).count() == 40
    assert db.logs.find({"run": "k", "kind": "epoch"}).count() == 2
    with pytest.raises(StateError, match=r"of another shape: .*kernel: expected"):
        best.load_into(net(width=17))


def test_what_does_not_fit_is_refused(db):
    fill(db)
    fit(db, "k", 1)
    model = net(width=17)
    before = model.get_weights()
    stream = db.data.find({"dataset": "x"}).stream(batch_size=16, shuffle=True, seed=0)
    with pytest.raises(StateError, match="another shape"):
        StepCheckpoint(db, run="k", every=1, stream=stream).restore(model)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert stream.state_dict()["position"] == 0
    model = net()
    model.compile("sgd", "mse")
    with pytest.raises(StateError, match="optimizer Adam; this model has SGD"):
        StepCheckpoint(db, run="k", every=1, stream=stream).restore(model)
    unbuilt = keras.Sequential([keras.layers.Dense(3)])
    unbuilt.compile("adam", "mse")
    with pytest.raises(StateError, match="no variables yet"):
        StepCheckpoint(db, run="k", every=1, stream=stream).restore(unbuilt)


def test_any_tensorflow_value_is_saved(db):
    db.params.save({"v": tf.Variable(tf.range(100)), "t": tf.ones((2, 3), tf.bfloat16)})
    back = db.params.find().first().load(framework="numpy")
    assert np.array_equal(back["v"], np.arange(100)) and back["t"].shape == (2, 3)


class Pair(keras.Model):
    def __init__(self, *order):
        super().__init__()
        for name in order:
            setattr(self, name, keras.layers.Dense(3))

    def call(self, x):
        return self.dec(keras.ops.tanh(self.enc(x)))


def pair(*order):
    keras.utils.set_random_seed(len(order[0]))
    model = Pair(*order)
    model(np.zeros((1, 3), "float32"))
    model.compile("adam", "mse")
    return model


def test_layers_that_are_declared_in_another_order(db):
    x, y = np.random.default_rng(0).normal(size=(2, 8, 3)).astype("float32")
    model = pair("enc", "dec")
    first = StepCheckpoint(db, run="k", every=1)
    model.fit(x, y, batch_size=4, epochs=2, shuffle=False, callbacks=[first], verbose=0)
    other = pair("dec", "enc")
    again = StepCheckpoint(db, run="k", every=100)
    assert again.restore(other) == 4
    assert np.array_equal(model.predict(x, verbose=0), other.predict(x, verbose=0))
    for one in (model, other):
        one.fit(x, y, batch_size=4, epochs=1, shuffle=False, verbose=0, callbacks=[again] if one is other else [])
    assert np.array_equal(model.predict(x, verbose=0), other.predict(x, verbose=0))
    third = pair("dec", "enc")
    best = db.params.find({"run": "k", "step": 4}).first()
    assert best.load_into(third).matched == ("dec/kernel", "dec/bias", "enc/kernel", "enc/bias")
    with pytest.raises(StateError, match=r"2 missing: enc/kernel.*2 unexpected: code/kernel"):
        best.load_into(third, rename={"enc": "code"})


def test_compile_after_restore_is_refused(db):
    x = np.zeros((4, 3), "float32")
    pair("enc", "dec").fit(x, x, callbacks=[StepCheckpoint(db, run="k", every=1)], verbose=0)
    model, again = pair("enc", "dec"), StepCheckpoint(db, run="k", every=1)
    assert again.restore(model) == 1
    model.compile("adam", "mse")
    with pytest.raises(CheckpointError, match="Compile first, then restore"):
        model.fit(x, x, callbacks=[again], verbose=0)


class Gan(keras.Model):
    """Has optimizers of its own. The one of `compile` is never used."""

    def __init__(self):
        super().__init__()
        self.generator = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        self.critic = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(1)])

    def compile(self, **optimizers):
        super().compile()
        self.g, self.c = optimizers["g"], optimizers["c"]

    def train_step(self, real):
        noise = tf.reduce_sum(real, axis=1, keepdims=True) * [[1.0, 2.0]]
        for _ in range(2):  # two steps of the critic for one of the generator
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(self.critic(self.generator(noise)) - self.critic(real))
            weights = self.critic.trainable_variables
            self.c.apply(tape.gradient(loss, weights), weights)
        with tf.GradientTape() as tape:
            other = -tf.reduce_mean(self.critic(self.generator(noise)))
        weights = self.generator.trainable_variables
        self.g.apply(tape.gradient(other, weights), weights)
        return {"critic": loss, "generator": other}


def gan(**optimizers):
    keras.utils.set_random_seed(0)
    model = Gan()
    model.compile(**{"g": keras.optimizers.Adam(0.01), "c": keras.optimizers.RMSprop(0.01), **optimizers})
    return model


def test_a_gan_is_counted_saved_and_resumed_by_its_own_optimizers(db):
    x = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")

    def fit(model, run, epochs, restore=False):
        ckpt = StepCheckpoint(db, run=run, every=4)
        start = ckpt.restore(model) if restore else 0
        model.fit(x, batch_size=4, epochs=epochs, shuffle=False, callbacks=[ckpt], verbose=0)
        return start, model

    _, whole = fit(gan(), "whole", 2)
    fit(gan(), "cut", 1)
    start, resumed = fit(gan(), "cut", 1, restore=True)
    assert start == 8 and equal(whole, resumed)  # four batches, of two steps of the critic each
    for name in ("g", "c"):
        pairs = zip(getattr(whole, name).variables, getattr(resumed, name).variables, strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)
    assert sorted(db.params.find({"run": "whole"}).distinct("step")) == [4, 8, 12, 16]
    with pytest.raises(StateError, match="saved with the optimizer RMSprop; c of this model is Adam"):
        fit(gan(c=keras.optimizers.Adam()), "cut", 1, restore=True)
    plain = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    plain.compile("rmsprop", "mse")
    with pytest.raises(StateError, match="the checkpoint has an optimizer 'c', and the other side has not"):
        fit(plain, "cut", 1, restore=True)


def test_a_model_without_an_optimizer_that_steps_is_said(db):
    class Idle(Gan):
        def train_step(self, real):
            return {"loss": tf.reduce_sum(real)}

    model = Idle()
    model.compile(g=keras.optimizers.Adam(), c=keras.optimizers.Adam())
    with pytest.warns(UserWarning, match="4 batches were trained on, and no optimizer of the model has made a step"):
        model.fit(np.zeros((4, 3)), batch_size=1, callbacks=[StepCheckpoint(db, run="k", every=1)], verbose=0)
    assert db.params.find().count() == 0
