"""Parameters, architectures, logs, search and the address of an embedded server, as in the interface by example."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pymongo import MongoClient

from tensordb_data import Query, TensorDB
from tests.steady.ports import free_port


@pytest.fixture
def mypkg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "mypkg").mkdir()
    (tmp_path / "mypkg" / "nets.py").write_text(
        "from torch import nn\ndef cnn(width):\n    return nn.Linear(4, width)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "mypkg"]:
        del sys.modules[name]


def test_parameters_and_architectures(db: TensorDB, mypkg: None) -> None:
    import keras
    from torch import nn

    model = nn.Linear(4, 64)
    id = db.params.save(model.state_dict(), run="cnn-1", step=400, tags=["cnn"], val_acc=0.91)
    best = db.params.find({"run": "cnn-1"}, sort=[("val_acc", -1)]).first()
    best.load()
    best.load_into(model)
    assert (best.id, best.step, best["val_acc"], best.query) == (id, 400, 0.91, Query("params", {"_id": id}))
    db.params.annotate({best.id: {"test_acc": 0.9}}, source="evaluator-1")
    assert db.params.find({"test_acc": 0.9}).first().id == id

    keras_model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    db.architectures.save("cnn", keras_model)
    assert db.architectures.find({"name": "cnn"}).first().build().count_params() == 10
    db.architectures.save("cnn", factory="mypkg.nets:cnn", kwargs={"width": 64}, tags=["cnn"])
    built = db.architectures.find({"name": "cnn"}).first().build(allow=["mypkg."])
    assert built.weight.shape == (64, 4)
    loaded = db.architectures.find({"tags": "cnn"}).first().build(allow=["mypkg."], params=db.params.find({"_id": id}))
    assert (loaded.weight == model.weight).all()


def test_logs(db: TensorDB) -> None:
    log = db.logs.run("cnn-1", tags=["cnn"])
    log.write(1, kind="train", loss=0.3, acc=0.8)
    log.close()
    with db.logs.run("cnn-1", tags=["cnn"]) as log:
        log.write(2, kind="train", loss=0.2, acc=0.9)
    rows = db.logs.find({"run": "cnn-1", "kind": "train"})
    assert rows.to_arrow().column("loss").to_pylist() == [0.3, 0.2]
    assert rows.to_pandas()["acc"].tolist() == [0.8, 0.9]
    assert db.logs.plot("loss", {"tags": "cnn"}).startswith(b"\x89PNG")


def test_search(db: TensorDB) -> None:
    with db.data.writer("lungs") as w:
        w.add(scan=np.zeros(3, np.int16), tags=["chest", "ct", "2024"])
    (hit,) = db.search("chest ct 2024")
    assert (hit.kind, hit.name) == ("data", "lungs") and hit.selection.count() == 1


def test_up_on_a_port_and_the_address_to_paste(warehouse_dir: Path) -> None:
    port = free_port()

    def tensordb(*args: str) -> str:
        command = [sys.executable, "-m", "tensordb_data.cli.main", *args, "--db", str(warehouse_dir)]
        return subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout

    tensordb("up", "--port", str(port))
    try:
        address = tensordb("uri").strip()
        assert f"127.0.0.1:{port}" in address
        with MongoClient(address) as client:
            assert client.admin.command("ping")["ok"] == 1
        assert f"127.0.0.1:{port}" in tensordb("status")
    finally:
        tensordb("down")
