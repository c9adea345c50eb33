"""Keras on torch: the callback resumes there too. In a process of its own, since Keras has one backend a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.integration.checkpoint.loops import fill

SCRIPT = """
import json, sys
sys.modules["tensorflow"] = None  # as if it were not installed
import keras
import numpy as np
from torch.utils.data import DataLoader
from tensordb_data import TensorDB
from tensordb_data.tf import StepCheckpoint
from tensordb_data.torch import QueryDataset

assert keras.backend.backend() == "torch"
db = TensorDB(sys.argv[1], blobs=sys.argv[2])

def fit(run, epochs, first=0):
    keras.utils.set_random_seed(0)
    stream = db.data.find({"dataset": "x"}).stream(batch_size=16, shuffle=True, seed=0)
    layers = [keras.layers.Dense(16), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5, seed=1)]
    model = keras.Sequential([keras.Input((8,)), *layers, keras.layers.Dense(3)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    callback = StepCheckpoint(db, run=run, every=5, stream=stream)
    start = callback.restore(model)
    data = DataLoader(QueryDataset(stream), batch_size=None, collate_fn=lambda b: (b["image"], b["label"]))
    model.fit(data, steps_per_epoch=5, epochs=epochs, initial_epoch=first, callbacks=[callback], verbose=0)
    callback.close()
    return start, model

_, whole = fit("whole", 4)
fit("cut", 2)
start, rest = fit("cut", 4, first=2)
found = db.params.find({"run": "cut"}, sort=[("step", -1)], limit=1).first()
fresh = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.BatchNormalization(),
                          keras.layers.Dropout(0.5), keras.layers.Dense(3)])
found.load_into(fresh)
equal = [np.array_equal(a, b) for a, b in zip(whole.get_weights(), rest.get_weights(), strict=True)]
loaded = [np.array_equal(a, b) for a, b in zip(fresh.get_weights(), rest.get_weights(), strict=True)]
print(json.dumps({"start": start, "equal": all(equal), "loaded": all(loaded)}))
"""


def test_weights_are_equal(db, mongo_uri, warehouse_dir):
    fill(db)
    script = warehouse_dir / "keras_on_torch.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), mongo_uri, f"file://{warehouse_dir}/blobs"],
        env={**os.environ, "KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == {"start": 10, "equal": True, "loaded": True}
