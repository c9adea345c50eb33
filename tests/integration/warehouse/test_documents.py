"""What is stored is what `warehouse/documents/` says: no other field, and none missing that it promises."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np

from tensordb_data import JobLimits, TensorDB
from tensordb_data.warehouse.documents import DOCUMENTS
from tensordb_data.warehouse.documents.blobs import BlobState
from tensordb_data.warehouse.documents.frozen import FrozenSetInternals
from tensordb_data.warehouse.documents.jobs import JobInternals, JobStatus
from tensordb_data.warehouse.documents.runs import ArchitectureInternals, LogInternals, ParameterSetInternals
from tensordb_data.warehouse.documents.samples import BlobReferenceDocument, SampleInternals

# Fields of the user, beside ours.
USERS = {"data": {"x", "label"}, "params": {"acc"}, "logs": {"loss"}, "architectures": {"note"}}
INTERNALS = {
    "data": SampleInternals,
    "params": ParameterSetInternals,
    "logs": LogInternals,
    "jobs": JobInternals,
    "architectures": ArchitectureInternals,
    "frozen": FrozenSetInternals,
}


def check(kind: Any, doc: dict[str, Any], others: set[str], what: str) -> None:
    fields = {name: text.__forward_arg__ for name, text in kind.__annotations__.items() if name != "del"}
    needed = {name for name, text in fields.items() if not text.startswith("NotRequired")}
    assert not doc.keys() - fields.keys() - others - {"del"}, what
    assert not needed - doc.keys(), what


def test_every_document_has_the_fields_that_are_promised(db: TensorDB) -> None:
    with db.data.writer("d") as writer:
        ids = writer.add_many(x=np.zeros((20, 5000), np.uint8), label=np.arange(20), tags=["a"])
    with db.data.writer("d", live=True) as writer:
        writer.add(x=np.zeros(5000, np.uint8)[:5000], label=20)
    db.data.annotate({ids[0]: {"label": 7}}, source="model:1")
    db.data.find({"label": 3}).delete()
    db.data.compact("d")
    first = db.params.save({"w": np.zeros(5000, "f4")}, run="r", step=1, acc=0.5)
    db.params.save({"w": np.ones(5000, "f4")}, run="r", step=2, parent=first, acc=0.6)
    db.params.find({"step": 1}).delete()
    with db.logs.run("r") as log:
        log.write(1, loss=0.5)
    db.architectures.save("a", factory="json:loads", kwargs={}, note="n")
    upstream = db.jobs.push("t", entry="json:loads", unique="u", limits=JobLimits(time_limit=5))
    db.jobs.push("t", script="pass", after=[upstream], data=db.data.find({"dataset": "d"}).query)
    claimed = db.jobs.claim(worker="w", lease=60)
    assert claimed is not None
    claimed.heartbeat(0.5)
    db.data.find({"dataset": "d"}).freeze("v1", tags=["a"])
    found = 0
    for name, kind in DOCUMENTS.items():
        for doc in db.database[name].find():
            found += 1
            check(kind, doc, USERS.get(name, set()), f"{name}: {doc}")
            if name in INTERNALS:
                check(INTERNALS[name], doc["_tdb"], set(), f"{name}: {doc}")
            if name == "data":
                for reference in doc["_tdb"]["b"].values():
                    assert not reference.keys() - BlobReferenceDocument.__annotations__.keys()
            if "state" in doc and name in ("segments", "tensors"):
                assert doc["state"] in get_args(BlobState)
            if name == "jobs":
                assert doc["status"] in get_args(JobStatus)
    assert found > 30
    kinds = {
        "data",
        "datasets",
        "segments",
        "tensors",
        "params",
        "logs",
        "jobs",
        "architectures",
        "search",
        "tombstones",
        "changes",
        "frozen",
        "frozen_segments",
    }
    assert all(db.database[name].find_one() for name in kinds)
