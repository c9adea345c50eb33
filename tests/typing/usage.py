"""What a type checker sees of the public interface. Checked by `make typecheck`, never run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from bson import ObjectId
from pymongo.database import Database
from torch.utils.data import DataLoader
from typing_extensions import assert_type

from tensordb_data import (
    Built,
    Clip,
    Every,
    Image,
    Job,
    JobLimits,
    JobSpec,
    LogSelection,
    MapDataset,
    ParameterSet,
    Partition,
    Permissions,
    PortableAddress,
    Query,
    Run,
    Sample,
    SaveOptions,
    Scaled,
    Selection,
    Shard,
    Stream,
    TensorDB,
    Tokens,
    Window,
)
from tensordb_data.continuous import Evaluator, Trainer
from tensordb_data.ingest import Columns, Report, Rows
from tensordb_data.job_runner.worker import Worker
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
assert_type(db.projects(), list[str])
assert_type(db.storage().nbytes, int)
assert_type(db.ui(open=False).url, str)
assert_type(db.data.datasets()[0].count, int)
assert_type(samples.thumbnails("image")[0].data, bytes)
assert_type(db.params.find().first().tensors[0].name, str)
assert_type(db.params.lineage("65f0c0ffee65f0c0ffee65f0").parents, tuple[ParameterSet, ...])
assert_type(db.jobs.workers()[0].host, str)
assert_type(samples.sample(5, seed=1), list[Sample])
assert_type(samples.value_counts("label"), dict[Any, int])
assert_type(samples.split({"train": 0.8, "test": 0.2}, by="patient").deviation, float)
assert_type(samples.page(10, after=samples.page().next).entities, list[Sample])
assert_type(samples.similar([0.5, 1.0], k=5)[0].score, float)
assert_type([pair.score for pair in samples.duplicates(above=0.98)], list[float])
assert_type(samples.duplicates().groups, list[list[ObjectId]])
assert_type(samples.within(2), Selection[Sample])
assert_type(samples.estimate().exact, bool)
assert_type(samples.describe()["label"].missing, int)
assert_type(samples.aggregate([{"$group": {"_id": "$label"}}]), list[dict[str, Any]])
assert_type(samples.query.to_json(), str)
assert_type(db.select(samples.query), Selection[Any])

with db.data.writer("digits") as writer:
    writer.add(image=b"", label=3, tags=["new"])
    writer.add_many(_key=["a", ("b", 1)], label=[1, 2])
assert_type(db.data.writer("digits", existing="skip").skipped, int)
db.data.writer("digits", existing="update")  # type: ignore[arg-type]

stream = samples.stream(batch_size=32, fields=["image"], shuffle=True)
assert_type(stream, Stream)
assert_type(stream.shard(0, 2), Stream)
assert_type(samples.stream(32, shard=Shard(rank=0, world_size=2, tail="pad")), Stream)
assert_type(samples.stream(32, rank=1, world_size=4, end="drop", weights="weight"), Stream)
assert_type(samples.stream(batch_tokens=32_768, length="n_tokens"), Stream)
assert_type(samples.stream(8, tokens=Tokens(pack=4096, long="split")), Stream)
assert_type(samples.stream(8, decode={"image": False, "film": Clip(frames=16), "sound": Window(2.0)}), Stream)
assert_type(samples.dataset(decode={"image": Scaled(224), "mask": Image("index")}), MapDataset)
samples.stream(8, decode={"image": "small"})  # type: ignore[dict-item]
samples.stream(8, pack=4096, long="keep")  # type: ignore[arg-type]
samples.stream(32, suffle=True)  # type: ignore[call-arg]
samples.stream(32, end="keep")  # type: ignore[arg-type]
QueryDataset(samples, shuffle=True, passes=2, shard=Shard())
QueryDataset(samples, pases=2)  # type: ignore[call-arg]
loader = DataLoader(QueryDataset(stream), batch_size=None)
model = torch.nn.Linear(1, 1)
with StepCheckpointer(db, run="r", model=model, every=10, stream=loader) as checkpointer:
    assert_type(checkpointer.restore(), int)
    checkpointer.step(loss=0.5)

how = SaveOptions(memory="4GB", when_busy="skip", signals=("SIGTERM", "SIGUSR1"))
StepCheckpointer(db, "r", model, every=Every(steps=200, seconds=60), options=how).close()

query_dataset(stream)
query_dataset(samples, batch_size=8, shuffle="full", ragged="pad")
StepCheckpoint(db, run="k", every=10, stream=stream)
StepCheckpoint(db, run="k", every=Every(overhead=0.02), options=how)
assert_type(db.params.find({"run": "r"}).first(), ParameterSet)
assert_type(db.params.import_file("model.pt", run="r", val_acc=0.9).left_out, Mapping[str, str])
assert_type(db.params.find().first().export("model.safetensors", overwrite=True).tensors, int)
assert_type(samples.partitions(8), list[Partition])
assert_type(samples.partitions(nbytes="64MB", fields=["label"])[0].read(credentials="env:DB")["label"], Any)
samples.partitions(number=8)  # type: ignore[call-arg]
assert_type(db.address, PortableAddress)
assert_type(TensorDB(db.address, credentials="env:DB"), TensorDB)
db.data.annotate_many(_id=[ObjectId()], label=[3], source="model:1")
assert_type(samples.export("out", "webdataset", shard_bytes="500MB").count, int)
assert_type(db.runs({"config.lr": 0.1}, sort=[("best.acc", -1)]).first(), Run)
assert_type(db.jobs.push("train", entry="mypkg.jobs:train", max_attempts=3), Job)
assert_type(db.jobs.push(JobSpec(kind="train", entry="mypkg.jobs:train", limits=JobLimits(backoff=1))), Job)
assert_type(db.jobs.push_script("train", "result = 3", args={"lr": 0.1}, limits=JobLimits(max_attempts=1)), Job)
db.jobs.push("train", entry="mypkg.jobs:train", max_attempt=3)  # type: ignore[call-arg]
Worker(db, may=Permissions(allow=["mypkg."]))
assert_type(TensorDB.from_host("db1", 27017, user_name="me", password="pw"), TensorDB)


def score(model: Any, batches: Any) -> float:
    return 0.5


def learn(learner: Any) -> None:
    Evaluator(db, db.params.find(), score, metric="acc", data=samples, model=Built(part="ema"))
    Trainer(db, "r", learner, stream, every=Every(seconds=60), options=how)


assert_type(db.logs.find({"run": "r"}), LogSelection)
assert_type(db.jobs.claim(worker="w", resources={"gpu": 1}), Job | None)
assert_type(db.database, Database[Any])

assert_type(db.data.ingest("photos/", "photos"), Report)
assert_type(db.data.ingest(["a.csv"], "t", key="id", types={"zip": str}, files={"img": Image()}, on_error=3), Report)
assert_type(db.data.ingest([{"a": 1}], "t", columns=Columns(skip=[""]), rows=Rows(prune=True)), Report)
db.data.ingest("t.csv", "t", on_change="no")  # type: ignore[arg-type]
db.data.ingest("t.csv", "t", keys="id")  # type: ignore[call-arg]
assert_type(db.logs.import_runs("mlflow", "mlruns", tags=["old"]).left_out, dict[str, int])
