"""Loggers for the trainers of others: what these report becomes rows of a run, and never ends a training."""

from __future__ import annotations

import argparse
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tensordb_data.errors import SchemaError
from tensordb_data.torch.loggers.run_rows import RunRows

ODD = {
    "val/acc@5": 0.5, "a.b": 1, "step": 2, "": 3, "$x": 4, "\ud800": 5, 7: 6, "huge": 2**70, "nan": float("nan"),
    "image": np.zeros((2, 2)), "nested": {"a": 1}, "object": object(), "text": "x", "odd text": "\ud800",
    "tensor": torch.tensor(2.5), "none": None, "list": [1, 2], "type": int,
}  # fmt: skip
STORED = {"val/acc@5": 0.5, "a_b": 1, "step_": 2, "7": 6, "text": "x", "tensor": 2.5, "none": None, "list": [1, 2]}


def rows(db, run, kind="train"):
    return [dict(row) for row in db.logs.find({"run": run, "kind": kind})]


def config(db, run):
    return db.runs({"name": run}).first().config


def data():
    return DataLoader(TensorDataset(torch.rand(12, 3), torch.rand(12, 1)), batch_size=2)


@pytest.mark.filterwarnings("ignore")
def test_any_metric_is_stored_or_left_out(db):
    written = RunRows(db, "r", ["t"])
    written.write(3, "train", ODD)
    written.write(None, "train", {"a": 1})
    written.write(3.7, "train", {"a": 1})
    for step in ("x", float("nan"), float("inf"), object()):
        written.write(step, "train", {"a": 1})
    written.write(2**64, "train", {"a": 2})
    written.write(4, "", {"a": 3})
    written.write(4, 7, {"a": 3})
    written.write(5, "train", {})
    written.write_config(argparse.Namespace(lr=0.1, model={"deep": {"n": 3, "act": torch.nn.GELU}, "a.b": [1, "x"]}))
    found = config(db, "r")
    loop: dict[str, object] = {"lr": 1}
    loop["self"] = loop
    written.write_config(loop)
    assert config(db, "r")["lr"] == 1
    written.write_config(None)
    written.write_config(3)
    assert config(db, "r")["lr"] == 1
    written.close()
    first, *more = rows(db, "r")
    assert first["step"] == 3 and first["tags"] == ["t"] and [(row["step"], row["a"]) for row in more] == [(3, 1)] * 6
    assert {name: first[name] for name in STORED} == STORED and np.isnan(first["nan"])
    assert not {"huge", "image", "nested", "object", "odd text", "type", "", "$x"} & first.keys()
    assert found["lr"] == 0.1 and found["model/deep/n"] == 3 and found["model/a_b"] == [1, "x"]
    assert found["model/deep/act"] == str(torch.nn.GELU)
    written.close()


def test_what_is_left_out_is_said_once(db):
    written = RunRows(db, "r")
    with pytest.warns(UserWarning, match=r"'huge' is left out") as said:
        for step in range(3):
            written.write(step, "train", {"huge": 2**70, "a": 1})
    written.close()
    assert len(said) == 1 and len(rows(db, "r")) == 3
    for bad in ("", None, 3):
        with pytest.raises(SchemaError, match="non-empty string"):
            RunRows(db, bad)
    with pytest.raises(SchemaError, match="list of strings"):
        RunRows(db, "r", "tag")


def test_lightning(db, tmp_path):
    pl = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed: pip install lightning")
    from tensordb_data.torch.lightning import RunLogger

    class Module(pl.LightningModule):
        def __init__(self, width=3):
            super().__init__()
            self.save_hyperparameters()
            self.net = torch.nn.Linear(width, 1)

        def training_step(self, batch, index):
            loss = (self.net(batch[0]) - batch[1]).pow(2).mean()
            self.log_dict({"train.loss": loss, "lr/odd name": 0.1})
            self.logger.log_metrics(ODD, step=index)
            return loss

        def validation_step(self, batch, index):
            self.log("val_loss", self.net(batch[0]).mean())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    logger = pickle.loads(pickle.dumps(RunLogger(db, "l", tags=["t"])))  # noqa: S301
    assert (logger.name, logger.version, logger.save_dir) == ("l", "", None)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    with pytest.warns(UserWarning, match="is left out"):
        trainer = pl.Trainer(logger=logger, max_epochs=2, log_every_n_steps=1, default_root_dir=tmp_path, **quiet)
        trainer.fit(Module(), data(), data())
    assert config(db, "l")["width"] == 3
    found = rows(db, "l")
    losses = {row["step"]: row["train_loss"] for row in found if "train_loss" in row}
    assert list(losses) == list(range(12)) and sum("val_loss" in row for row in found) == 2
    assert all(row["tags"] == ["t"] for row in found)
    logger._rows.db.close()
    with pytest.raises(SchemaError, match="a kind is"):
        RunLogger(db, "l", kind="")


def test_hugging_face(db, tmp_path):
    reason = "Transformers are not installed: pip install transformers accelerate"
    transformers = pytest.importorskip("transformers", reason=reason)
    pytest.importorskip("accelerate", reason=reason)
    from tensordb_data.torch.transformers import RunLogger

    class Model(torch.nn.Linear):
        def forward(self, x, labels):
            out = super().forward(x)
            return {"loss": (out - labels).pow(2).mean(), "logits": out}

    samples = [{"x": torch.rand(3), "labels": torch.rand(1)} for _ in range(8)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, logging_steps=2, eval_strategy="steps", eval_steps=4, save_strategy="no",
        per_device_train_batch_size=2, report_to=[], disable_tqdm=True, use_cpu=True, remove_unused_columns=False,
        dataloader_pin_memory=False, hub_token="hf_secret",
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=Model(3, 1), args=arguments, train_dataset=samples, eval_dataset=samples, callbacks=[RunLogger(db, "h")]
    )
    trainer.train()
    found = rows(db, "h")
    assert [row["step"] for row in found if "loss" in row] == [2, 4] and found[-1]["train_loss"] > 0
    assert [row["step"] for row in rows(db, "h", "valid")] == [4]
    noted = config(db, "h")
    assert noted["max_steps"] == 4 and "hf_secret" not in str(noted)
    with pytest.warns(UserWarning, match="is left out"):
        trainer.log(dict(ODD))
    trainer.evaluate()
    trainer.callback_handler.on_train_end(arguments, trainer.state, trainer.control)
    assert len(rows(db, "h", "valid")) == 2 and rows(db, "h")[-1]["text"] == "x"


@pytest.mark.filterwarnings("ignore")
def test_accelerate(db):
    accelerate = pytest.importorskip("accelerate", reason="Accelerate is not installed: pip install accelerate")
    from tensordb_data.torch.accelerate import RunTracker

    accelerator = accelerate.Accelerator(log_with=RunTracker(db, "a"), cpu=True)
    accelerator.init_trackers("ignored", config={"lr": 0.1, "opt": {"name": "adam"}})
    accelerator.log({"loss": torch.tensor(0.5)}, step=1)
    accelerator.log(ODD, step=2)
    accelerator.log({"acc": 1}, log_kwargs={"tensordb": {"kind": "valid"}})
    accelerator.get_tracker("tensordb", unwrap=True).write(3, kind="mine", size=4)
    accelerator.end_training()
    assert [row.get("loss") for row in rows(db, "a")] == [0.5, None]
    assert (rows(db, "a", "valid")[0]["step"], rows(db, "a", "mine")[0]["size"]) == (2, 4)
    assert config(db, "a") == {"lr": 0.1, "opt/name": "adam"}
