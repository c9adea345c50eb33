"""Architectures: stored, versioned, built; and what would run foreign code is refused."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import torch

from tensordb_data import (
    ArchitectureError,
    CorruptBlobError,
    NotAllowedError,
    NotFoundError,
    QueryError,
    StateError,
    TensorDB,
)

NETS = '''"""Nets of a user."""
import os
from torch import nn

def cnn(width=4, depth=1):
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))
'''


@pytest.fixture
def mypkg(tmp_path, monkeypatch):
    (tmp_path / "mypkg").mkdir()
    (tmp_path / "mypkg" / "__init__.py").write_text("")
    (tmp_path / "mypkg" / "nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "mypkg"]:
        del sys.modules[name]


def test_a_factory_is_stored_without_being_imported(db, mypkg):
    id = db.architectures.save("cnn", factory="mypkg.nets:cnn", kwargs={"width": 64}, tags=["cnn"], author="me")
    assert "mypkg" not in sys.modules
    found = db.architectures.find({"name": "cnn", "kwargs.width": 64}).first()
    assert (found.id, found.version, found.format, found.tags, found["author"]) == (id, 1, "factory", ["cnn"], "me")
    assert found.source == NETS
    with pytest.raises(NotAllowedError, match=r'allow=\["mypkg\."\]'):
        found.build()
    assert "mypkg" not in sys.modules
    assert found.build(allow=["mypkg."])[0].weight.shape == (64, 64)
    assert db.select(found.query).first() == found


def test_build_with_parameters(db, mypkg):
    db.architectures.save("cnn", factory="mypkg.nets:cnn", kwargs={"width": 3})
    architecture = db.architectures.find({"name": "cnn"}).first()
    model = architecture.build(allow=["mypkg.nets"])
    db.params.save(model.state_dict(), run="r", step=1, acc=0.1)
    for tensor in model.state_dict().values():
        tensor.fill_(7)
    db.params.save(model.state_dict(), run="r", step=2, acc=0.9)
    best = db.params.find({"run": "r"}, sort=[("acc", -1)])
    for params in (best, best.first(), best.query):
        built = architecture.build(allow=["mypkg.nets"], params=params)
        assert (built[0].weight == 7).all()
    with pytest.raises(NotFoundError):
        architecture.build(allow=["mypkg."], params=db.params.find({"run": "none"}))
    with pytest.raises(QueryError, match="params="):
        architecture.build(allow=["mypkg."], params=db.data.find())
    db.architectures.save("wide", factory="mypkg.nets:cnn", kwargs={"width": 5})
    with pytest.raises(StateError, match="another shape"):
        db.architectures.find({"name": "wide"}).first().build(allow=["mypkg."], params=best)


def test_a_name_has_versions_and_the_newest_comes_first(db):
    threads = [
        threading.Thread(target=lambda: db.architectures.save("cnn", factory="json:loads", kwargs={"s": "1"}))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    db.architectures.save("cnn", factory="json:dumps", kwargs={"obj": 1})
    assert [a.version for a in db.architectures.find({"name": "cnn"})] == [5, 4, 3, 2, 1]
    assert db.architectures.find({"name": "cnn"}).first().build(allow=["json."]) == "1"
    assert len(db.database["tensors"].distinct("key")) == 1  # one source, stored once


def test_keras(db, mypkg):
    import keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="relu"), keras.layers.Dense(2)])
    inputs = keras.Input((4,))
    added = keras.layers.Add()([inputs, keras.ops.sin(inputs)])
    functional = keras.Model(inputs, keras.layers.Lambda(keras.ops.relu)(added))
    db.architectures.save("cnn", model)
    db.architectures.save("f", functional)
    found = db.architectures.find({"name": "cnn"}).first()
    assert found.format == "keras" and json.loads(found.data)["class_name"] == "Sequential" and found.source is None
    weights = [np.full(w.shape, 0.5, np.float32) for w in model.get_weights()]
    db.params.save(weights, run="k")
    built = found.build(params=db.params.find({"run": "k"}))
    assert all((a == b).all() for a, b in zip(built.get_weights(), weights, strict=True))
    x = np.ones((1, 4), np.float32)
    np.testing.assert_allclose(db.architectures.find({"name": "f"}).first().build()(x), functional(x))


def test_keras_with_classes_of_ones_own(db, mypkg):
    (mypkg / "mypkg" / "layers.py").write_text(
        "import keras\n@keras.saving.register_keras_serializable('mypkg')\nclass Twice(keras.layers.Layer):\n"
        "    def call(self, x):\n        return 2 * x\n"
    )
    import keras
    from mypkg.layers import Twice  # type: ignore[import-not-found]

    db.architectures.save("twice", keras.Sequential([keras.Input((1,)), Twice()]))
    found = db.architectures.find({"name": "twice"}).first()
    with pytest.raises(NotAllowedError, match=r"mypkg\.layers"):
        found.build()
    assert float(found.build(allow=["mypkg."])(np.ones((1, 1)))[0, 0]) == 2


@pytest.mark.parametrize(
    "node",
    [
        {"class_name": "system", "module": "os", "config": {}, "registered_name": None},
        {"class_name": "function", "module": "os", "config": "system", "registered_name": "system"},
        {"class_name": "__lambda__", "config": {"value": ["4wAAAA==", None, None]}},
        {"class_name": "TFSMLayer", "module": "keras.layers", "config": {"filepath": "/x"}, "registered_name": None},
        {"class_name": "Dense", "module": "kerasevil.layers", "config": {"units": 1}, "registered_name": None},
        {"class_name": "StringLookup", "module": "keras.layers", "config": {"vocabulary": "/etc/passwd"}},
        {"class_name": "TextVectorization", "module": "keras.layers", "config": {"vocabulary": "/etc/passwd"}},
        {"class_name": "IntegerLookup", "module": "keras.src.layers", "config": {"vocabulary": "/etc/passwd"}},
        {
            "class_name": "Lambda",
            "module": "keras.layers",
            "config": {
                "function": {
                    "class_name": "function",
                    "module": "keras.utils",
                    "config": "get_file",
                    "registered_name": "get_file",
                }
            },
        },
        {"class_name": "Lambda", "module": "keras.layers", "config": {"function": ["4wAAAA==", None, None]}},
        {
            "class_name": "Activation",
            "module": "keras.layers",
            "config": {"activation": {"class_name": "function", "module": "keras.saving", "config": "load_model"}},
        },
    ],
)
def test_a_keras_configuration_runs_nothing_else(db, node):
    import keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    config = json.loads(model.to_json())
    config["config"]["layers"].append(node)
    from tensordb_data.architectures.formats import unpack
    from tensordb_data.common.import_paths import Allow

    with pytest.raises(NotAllowedError):
        unpack("keras", json.dumps(config).encode(), Allow(["mypkg."]), "it")


def test_what_keras_cannot_describe_is_refused_when_it_is_saved(db):
    import keras

    class Mine(keras.Model):
        def __init__(self, thing):
            super().__init__()

    with pytest.raises(ArchitectureError, match="factory="):
        db.architectures.save("mine", Mine(object()))
    with pytest.raises(ArchitectureError, match="Lambda"):
        db.architectures.save("l", keras.Sequential([keras.Input((1,)), keras.layers.Lambda(lambda x: x)]))
    assert db.architectures.find().count() == 0


def test_torch_export(db, tmp_path):
    model = torch.nn.Linear(3, 2)
    exported = torch.export.export(model, (torch.ones(1, 3),))
    db.architectures.save("linear", exported)
    found = db.architectures.find({"name": "linear"}).first()
    with pytest.raises(NotAllowedError, match=r'runs what is stored in it.*allow=\["torch'):
        found.build()
    built = found.build(allow=["torch.export"])
    assert torch.equal(built(torch.ones(1, 3)), model(torch.ones(1, 3)))
    (tmp_path / "linear.pt2").write_bytes(found.data)
    db.architectures.save("linear", tmp_path / "linear.pt2")
    assert [a.version for a in db.architectures.find({"format": "torch.export"})] == [2, 1]
    db.params.save({name: torch.zeros_like(t) for name, t in model.state_dict().items()}, run="zero")
    zero = found.build(allow=["torch.export"], params=db.params.find({"run": "zero"}))
    assert not zero(torch.ones(1, 3)).any()


def test_onnx(db, tmp_path, mongo_uri, warehouse_dir):
    onnx = pytest.importorskip("onnx")
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("no onnxruntime")
    one = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2])
    two = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "x"], ["y"])], "g", [one], [two])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    db.architectures.save("add", model)
    (tmp_path / "broken.onnx").write_bytes(b"no")
    db.architectures.save("broken", tmp_path / "broken.onnx")
    script = """
        import sys, numpy as np
        from tensordb_data import ArchitectureError, TensorDB
        with TensorDB(sys.argv[1]) as db:
            session = db.architectures.find({"name": "add"}).first().build()
            assert session.run(None, {"x": np.float32([1, 2])})[0].tolist() == [2, 4]
            try:
                db.architectures.find({"name": "broken"}).first().build()
            except ArchitectureError as error:
                assert "gives no model" in str(error)
            else:
                raise AssertionError
    """
    # A process of its own: the runtime keeps a file of its own open for as long as it is loaded.
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), mongo_uri], check=True, timeout=100)


def test_a_version_stays_as_it_was_saved(db):
    db.architectures.save("cnn", factory="json:loads")
    db.architectures.find({"name": "cnn"}).update({"$set": {"note": "good"}})
    assert db.architectures.find({"note": "good"}).first().version == 1
    for field in ("name", "version", "factory", "kwargs.s"):
        with pytest.raises(QueryError, match="save a new version"):
            db.architectures.find({"name": "cnn"}).update({"$set": {field: "x"}})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "give either"),
        ({"model": 1, "factory": "a:b"}, "give either"),
        ({"model": 1, "kwargs": {}}, "give either"),
        ({"model": object()}, "found a object"),
        ({"model": "net.bin"}, "ends with"),
        ({"model": "missing.onnx"}, "cannot be read"),
        ({"model": torch.nn.Linear(1, 1)}, "factory="),
        ({"factory": "nets.cnn"}, "expected a reference"),
        ({"factory": "__main__:cnn"}, "into a module"),
        ({"factory": "a:b", "kwargs": {"f": object()}}, "kwargs"),
        ({"factory": "a:b", "version": 3}, "taken"),
    ],
)
def test_odd_arguments(db, arguments, says):
    with pytest.raises(ArchitectureError, match=says):
        db.architectures.save("x", **arguments)


def test_a_factory_that_does_not_take_its_arguments(db):
    db.architectures.save("x", factory="json:loads", kwargs={"no": 1})
    with pytest.raises(ArchitectureError, match="does not take"):
        db.architectures.find().first().build(allow=["json."])


def test_a_damaged_blob_is_told(db, warehouse_dir):
    db.architectures.save("x", factory="json:loads")
    (file,) = (path for path in (warehouse_dir / "blobs" / "architectures").rglob("*") if path.is_file())
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.chmod(0o600)
    file.write_bytes(data)
    with pytest.raises(CorruptBlobError, match="architecture 'x' version 1"):
        _ = db.architectures.find().first().source


def test_with_mongomock(mypkg):
    import mongomock

    with TensorDB(client=mongomock.MongoClient(), blobs="memory://") as db:
        db.architectures.save("cnn", factory="mypkg.nets:cnn", kwargs={"width": 2})
        assert db.architectures.find({"name": "cnn"}).first().source == NETS


def test_the_core_imports_no_framework():
    code = (
        "import sys, tensordb_data.api.architectures as a\n"
        "assert not {'torch', 'keras', 'tensorflow', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
