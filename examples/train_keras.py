"""The same data through Keras `fit`, with a callback that saves every 50 optimizer steps.

python examples/train_keras.py WAREHOUSE EPOCHS
"""

import sys

import keras
import tensorflow as tf

from tensordb_data import TensorDB
from tensordb_data.tf import StepCheckpoint, query_dataset


def main(warehouse, epochs):
    keras.utils.set_random_seed(0)
    db = TensorDB(warehouse)
    digits = db.data.find({"dataset": "digits"})
    stream = (digits & {"split": "train"}).stream(batch_size=64, shuffle=True, seed=0)
    held_out = (digits & {"split": "valid"}).stream(batch_size=256, passes=1)

    def pair(batch):
        return tf.cast(batch["image"][..., None], tf.float32) / 255, batch["label"]

    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])

    checkpoint = StepCheckpoint(db, run="keras", every=50, stream=stream)
    print("start", checkpoint.restore(model), flush=True)
    batches = query_dataset(stream).map(pair).prefetch(2)
    model.fit(batches, steps_per_epoch=50, epochs=epochs, callbacks=[checkpoint], verbose=0)

    for saved in db.params.find({"run": "keras"}):
        saved.load_into(model)
        _, accuracy = model.evaluate(query_dataset(held_out).map(pair), verbose=0)
        db.params.find({"_id": saved.id}).update({"$set": {"val_acc": accuracy}})
        print("step", saved.step, "val_acc", accuracy, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
