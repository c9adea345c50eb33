"""What a type checker sees of the public interface. Checked by `make typecheck`, never run."""

from __future__ import annotations

from typing import Any

import torch
from pymongo.database import Database
from torch.utils.data import DataLoader
from typing_extensions import assert_type

from tensordb_data import Job, LogSelection, ParameterSet, Query, Sample, Selection, Stream, TensorDB
from tensordb_data.tf import StepCheckpoint, query_dataset
from tensordb_data.torch import QueryDataset, StepCheckpointer

db = TensorDB("./warehouse", project="typed")
samples = db.data.find({"dataset": "digits"}, sort=[("label", 1)], limit=10)
assert_type(samples, Selection[Sample])
assert_type(samples.first(), Sample)
assert_type(samples.one(), Sample)
assert_type(samples & {"label": 3}, Selection[Sample])
assert_type(samples.count(), int)
assert_type(samples.query, Query)
assert_type(samples.query.to_json(), str)
assert_type(db.select(samples.query), Selection[Any])

with db.data.writer("digits") as writer:
    writer.add(image=b"", label=3, tags=["new"])

stream = samples.stream(batch_size=32, fields=["image"], shuffle=True)
assert_type(stream, Stream)
assert_type(stream.shard(0, 2), Stream)
loader = DataLoader(QueryDataset(stream), batch_size=None)
model = torch.nn.Linear(1, 1)
with StepCheckpointer(db, run="r", model=model, every=10, stream=loader) as checkpointer:
    assert_type(checkpointer.restore(), int)
    checkpointer.step(loss=0.5)

query_dataset(stream)
StepCheckpoint(db, run="k", every=10, stream=stream)
assert_type(db.params.find({"run": "r"}).first(), ParameterSet)
assert_type(db.logs.find({"run": "r"}), LogSelection)
assert_type(db.jobs.claim(worker="w", resources={"gpu": 1}), Job | None)
assert_type(db.database, Database[Any])
