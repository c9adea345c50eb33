"""What others may have written in place of a set: sizes that are not there, and structures that are none."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from bson import ObjectId

from tensordb_data import TensorDB
from tensordb_data.errors import CheckpointError, CorruptBlobError
from tensordb_data.tensors.write import digest
from tests.helpers import at_most, bomb


@pytest.mark.parametrize("blobs", ["file", "memory://"])
def test_tensor_documents(mongo_uri: str, warehouse_dir: Any, blobs: str) -> None:
    blobs = f"file://{warehouse_dir}/blobs" if blobs == "file" else blobs
    with TensorDB(mongo_uri, blobs=blobs, cache=warehouse_dir / "c") as db:
        weight = torch.randn(2000)
        id = db.params.save({"weight": weight, "zeros": torch.zeros(5000)}, run="r")
        tensors, model = db.database["tensors"], torch.nn.Module()
        model.register_buffer("weight", torch.zeros(2000))
        model.register_buffer("zeros", torch.ones(5000))
        for tensor, n in ((weight, 8000), (torch.zeros(5000), None)):
            which = {"_id.h": digest(tensor.numpy().view(np.uint8).data)}
            was = tensors.find_one(which)
            assert was is not None and (n is None or was["n"] == n)
            for change in (
                {"o": -1}, {"o": 2**50}, {"o": "text"}, {"n": -5}, {"n": 2**50}, {"n": "text"}, {"n": None}, {"n": 1.5},
                {"root": "text"}, {"root": 77}, {"key": 5}, {"key": "../../etc/passwd"}, {"z": 2**50}, {"z": -1},
                {"n": True}, {"z": 3 * 10**9},
            ):  # fmt: skip
                tensors.update_one(which, {"$set": change})
                with at_most(20 << 20):
                    for load in (db.params.find({"_id": id}).first().load, lambda: load_into(db, id, model)):
                        with pytest.raises((CorruptBlobError, OSError, CheckpointError)) as caught:
                            load()
                        assert isinstance(caught.value, (CorruptBlobError, CheckpointError)) or str(caught.value)
                        assert type(caught.value).__module__ == "tensordb_data.errors", change
                tensors.replace_one(which, was)
        assert torch.equal(model.weight, torch.zeros(2000)) and torch.equal(model.zeros, torch.ones(5000))
        load_into(db, id, model)
        assert torch.equal(model.weight, weight)


def load_into(db: TensorDB, id: ObjectId, model: Any) -> None:
    db.params.find({"_id": id}).first().load_into(model)


def put_tensor(db: TensorDB, data: bytes, stored: bytes | None = None) -> bytes:
    """A tensor as an outsider writes it: an object, and its document."""
    key = f"params/{ObjectId()}.safetensors"
    db.warehouse.blobs.store().put(key, [data if stored is None else stored])
    content = digest(memoryview(data))
    row: dict[str, Any] = {"root": db.warehouse.blobs.write_root, "key": key, "o": 0, "n": len(stored or data)}
    if stored is not None:
        row["z"] = len(data)
    db.database["tensors"].replace_one(
        {"_id": {"p": db.warehouse.project, "h": content}}, row | {"state": "live"}, upsert=True
    )
    return content


def test_structures(db: TensorDB) -> None:
    id = db.params.save({"w": torch.arange(2000.0), "small": torch.zeros(2)}, run="r")
    document = db.database["params"].find_one({"_id": id})
    assert document is not None
    content = bytes(document["_tdb"]["structure"])
    place = db.database["tensors"].find_one({"_id.h": content})
    assert place is not None
    (raw,) = db.warehouse.blobs.store().get_ranges(place["key"], [place["o"]], [place["n"]])
    whole = json.loads(bytes(raw))
    row, small = whole["leaves"]
    odd: list[Any] = [b"", b"{", b"null", b"[" * 10**5, b"\xff", b'"text"', b"1e999", {}, {**whole, "leaves": None}]
    odd += [{**whole, "tree": tree} for tree in (None, 5, {}, {"dict": 3}, {"dict": [["model"]]}, {"leaf": 0},
            {"dict": [["model", {"leaf": 9}]]}, {"dict": [["model", {"leaf": []}]]}, {"dict": [["model", {"x": 1}]]},
            {"dict": [["model", {"float": "text"}]]}, {"dict": [["model", {"tuple": 3}]]})]  # fmt: skip
    for at, values in enumerate((
        [5], ["none"], ["O", "no", "int7", "<U999999999", 5], [[-1], [2**40, 2**40], ["2000"], [1999], None],
        ["zz", 5, "00" * 16], [],
    )):  # fmt: skip
        odd += [{**whole, "leaves": [[*row[:at], value, *row[at + 1 :]], small]} for value in values]
    odd += [{**whole, "leaves": [row, [*small[:5], value]]} for value in ("AAAA", "%", None, 5)]
    odd.append({**whole, "leaves": [row, [*small[:3], [0, 2**62], None, ""]]})
    for structure in odd:
        data = structure if isinstance(structure, bytes) else json.dumps(structure).encode()
        db.database["params"].update_one({"_id": id}, {"$set": {"_tdb.structure": put_tensor(db, data)}})
        with at_most(20 << 20), pytest.raises((CorruptBlobError, CheckpointError)):
            print(db.params.find({"_id": id}).first().load(), data[:200])
    frame = bomb(3 * 10**9)
    content = put_tensor(db, b"anything", frame)
    db.database["tensors"].update_one({"_id.h": content}, {"$set": {"z": 3 * 10**9}})
    for structure in (content, "text", None):
        db.database["params"].update_one({"_id": id}, {"$set": {"_tdb.structure": structure}})
        with at_most(20 << 20), pytest.raises(CorruptBlobError, match=r"may become 1,073,741,824|structure of"):
            db.params.find({"_id": id}).first().load()
