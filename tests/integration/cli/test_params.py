"""`tensordb params import` and `export`: files of other programs in and out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy
from typer.testing import CliRunner

from tensordb_data import Keep
from tensordb_data.cli.main import app


@pytest.fixture
def tensordb(db, mongo_uri, warehouse_dir, monkeypatch):
    db.params.save({"first": np.ones(1)})  # the place of blobs is there, and known
    monkeypatch.setenv("TENSORDB_ROOTS", f"file://{warehouse_dir}/blobs")

    def run(*args):
        return CliRunner().invoke(app, ["params", *map(str, args), "--db", mongo_uri])

    return run


def test_a_file_comes_in_and_goes_out(db, tensordb, tmp_path):
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    safetensors.numpy.save_file({"w": np.arange(100, dtype="f4")}, source)
    done = tensordb("import", source, "--run", "r", "--step", 3, "--tag", "a", "--metric", "acc=0.5", "--json")
    assert done.exit_code == 0, done.output
    (found,) = db.params.find({"run": "r"})
    assert json.loads(done.stdout)["id"] == str(found.id)
    assert (found.step, found["tags"], found["acc"], json.loads(done.stdout)["tensors"]) == (3, ["a"], 0.5, 1)
    assert "1 tensors" in tensordb("import", source, "--run", "r", "--metric", "acc=0.9", "--metric", "who=me").stdout

    done = tensordb("export", '{"run": "r"}', target, "--sort=-acc")
    assert done.exit_code == 0 and "1 tensors" in done.stdout, done.output
    assert np.array_equal(safetensors.numpy.load_file(target)["w"], np.arange(100))
    assert tensordb("export", str(found.id), target, "--overwrite", "--json").exit_code == 0
    for args, message in [
        (("export", '{"run": "r"}', tmp_path / "x.pt"), "several parameter sets match"),
        (("export", '{"run": "s"}', tmp_path / "x.pt"), "no parameter set matches"),
        (("export", "{", tmp_path / "x.pt"), "the filter is not JSON"),
        (("export", found.id, target), "overwrite=True"),
        (("export", found.id, tmp_path / "x.onnx"), "expected a name that ends with"),
        (("import", tmp_path / "none"), "none"),
    ]:
        done = tensordb(*args)
        assert done.exit_code == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.output
    assert tensordb("import", source, "--metric", "acc").exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["in.safetensors", "out.safetensors"]


def test_attempts_stay_unless_told(db, tensordb, monkeypatch):
    seen = []

    def prune(self, run, keep, dry_run=False):
        seen.append(keep)
        raise SystemExit

    monkeypatch.setattr("tensordb_data.api.params.Params.prune", prune)
    tensordb("prune", "--run", "r", "--last", 1)
    tensordb("prune", "--run", "r", "--last", 1, "--no-attempts")
    assert seen == [Keep(last=1), Keep(last=1, attempts=False)]
