"""Trainers of Lightning and Hugging Face, interrupted and resumed by their callbacks, end as if never interrupted."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from tensordb_data.torch import QueryDataset
from tests.integration.checkpoint.loops import fill, net


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class TestLightning:
    @pytest.fixture
    def fit(self, db, tmp_path):
        pl = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed: pip install lightning")
        from tensordb_data.torch.lightning import StepCheckpoint

        fill(db)

        class Module(pl.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = net()

            def training_step(self, batch, index):
                return torch.nn.functional.cross_entropy(self.net(batch["image"]), batch["label"])

            def validation_step(self, batch, index):
                self.log("val_loss", self.training_step(batch, index))

            def configure_optimizers(self):
                optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
                scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [6, 9])
                return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

        def run(name, steps, accumulate=1, workers=0, valid=None, ckpt_path=None, keep_at=None, **options):
            torch.manual_seed(0)
            dataset = QueryDataset(db.data.find({"dataset": "x"}), batch_size=16, shuffle=True, seed=0)
            module = Module()
            trainer = pl.Trainer(
                max_steps=steps,
                accumulate_grad_batches=accumulate,
                callbacks=[StepCheckpoint(db, name, stream=dataset, **{"every": 4, **options})],
                default_root_dir=tmp_path,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                accelerator="cpu",
                **({} if valid is None else {"val_check_interval": valid, "limit_val_batches": 2}),
            )
            loader = DataLoader(dataset, batch_size=None, num_workers=workers)
            held_out = QueryDataset(db.data.find({"dataset": "x"}), batch_size=50, passes=1)
            held_out = None if valid is None else DataLoader(held_out, batch_size=None)
            trainer.fit(module, loader, held_out, ckpt_path=ckpt_path)
            if keep_at is not None:
                trainer.save_checkpoint(keep_at)
            return weights(module), trainer.global_step

        return run

    def test_exact(self, db, fit):
        whole, _ = fit("whole", 14)
        fit("cut", 10)
        assert db.params.find({"run": "cut"}).distinct("step") == [4, 8]
        rest, steps = fit("cut", 14, workers=2)
        assert same(rest, whole) and steps == 14
        assert db.params.find({"run": "cut"}).distinct("step") == [4, 8, 12]

    def test_an_explicit_checkpoint_wins(self, db, fit, tmp_path):
        fit("r", 6, keep_at=tmp_path / "6.ckpt")
        fit("r", 8)
        _, steps = fit("r", 8, ckpt_path=tmp_path / "6.ckpt")
        assert steps == 8
        assert [one.step for one in db.params.find({"run": "r"}, sort=[("_id", 1)])] == [4, 8, 8]
        imported = db.params.import_file(tmp_path / "6.ckpt", run="in")
        assert imported.parts == ("model", "optimizer", "scheduler")
        assert db.params.find({"run": "in"}).first().step == 6

    def test_accumulated_and_on_the_best(self, db, fit):
        fit("r", 4, accumulate=2, valid=2, every=None, on_best=("val_loss", "min"))
        found = db.params.find({"run": "r"}, sort=[("step", 1)]).all()
        assert found and all(one.step % 2 == 0 for one in found)
        losses = [one["val_loss"] for one in found]
        assert losses == sorted(losses, reverse=True)
        assert db.logs.find({"run": "r", "kind": "valid"}).count() >= len(found)

    def test_two_optimizers_in_manual_optimization(self, db, fit, tmp_path):
        import lightning.pytorch as pl

        from tensordb_data.torch.lightning import StepCheckpoint

        class Pair(pl.LightningModule):
            def __init__(self):
                super().__init__()
                self.automatic_optimization = False
                self.one, self.two = net(), net()

            def training_step(self, batch, index):
                for model, optimizer in zip((self.one, self.two), self.optimizers(), strict=True):
                    loss = torch.nn.functional.cross_entropy(model(batch["image"]), batch["label"])
                    optimizer.zero_grad()
                    self.manual_backward(loss)
                    optimizer.step()
                self.log_dict({"step": loss, "train.loss": loss})

            def configure_optimizers(self):
                return [torch.optim.Adam(self.one.parameters(), 0.01), torch.optim.AdamW(self.two.parameters(), 0.02)]

        def run(name, batches):
            torch.manual_seed(0)
            dataset = QueryDataset(db.data.find({"dataset": "x"}), batch_size=16, shuffle=True, seed=0)
            saver = StepCheckpoint(db, name, stream=dataset, every=3, on_best=("train.loss", "min"))
            quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
            trainer = pl.Trainer(
                max_steps=2 * batches,
                callbacks=[saver],
                default_root_dir=tmp_path,
                logger=False,
                accelerator="cpu",
                **quiet,
            )
            module = Pair()
            trainer.fit(module, DataLoader(dataset, batch_size=None))
            return weights(module), trainer.global_step

        with pytest.warns(UserWarning, match="'step' is stored as 'step_'"):
            whole, _ = run("whole", 8)
        run("cut", 5)
        rest, steps = run("cut", 8)
        assert same(rest, whole) and steps == 16
        rows = {row["step"]: row["train_loss"] for row in db.logs.find({"run": "whole", "kind": "train"})}
        assert list(rows) == list(range(1, 9))
        best = db.params.find({"run": "whole"}, sort=[("train_loss", 1)]).first()
        assert best["train_loss"] == min(rows.values()) == best["step_"]


class TestTransformers:
    @pytest.fixture
    def fit(self, db, tmp_path):
        reason = "Transformers are not installed: pip install transformers accelerate"
        transformers = pytest.importorskip("transformers", reason=reason)
        pytest.importorskip("accelerate", reason=reason)
        from tensordb_data.torch.transformers import StepCheckpoint

        fill(db)

        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.net = net()

            def forward(self, image, labels):
                logits = self.net(image)
                return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

        def run(name, steps, accumulate=1, resume=None, more=None, **options):
            torch.manual_seed(0)
            dataset = QueryDataset(db.data.find({"dataset": "x"}), shuffle=True, seed=0)
            model = Model()
            saving = {"save_strategy": "no"} if more is None else more
            arguments = transformers.TrainingArguments(
                output_dir=str(tmp_path),
                max_steps=steps,
                logging_steps=1,
                **saving,
                lr_scheduler_type="constant_with_warmup",
                warmup_steps=6,
                per_device_train_batch_size=16,
                gradient_accumulation_steps=accumulate,
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                remove_unused_columns=False,
                dataloader_pin_memory=False,
            )
            callback = StepCheckpoint(db, name, stream=dataset, **{"every": 4, **options})
            trainer = transformers.Trainer(
                model=model, args=arguments, train_dataset=dataset, data_collator=collate, callbacks=[callback]
            )
            trainer.train(resume_from_checkpoint=resume)
            return weights(model), trainer.state.global_step

        def collate(samples):
            return {
                "image": torch.stack([one["image"] for one in samples]),
                "labels": torch.stack([torch.as_tensor(one["label"]) for one in samples]),
            }

        return run

    def test_exact(self, db, fit):
        whole, _ = fit("whole", 14)
        fit("cut", 10)
        assert db.params.find({"run": "cut"}).distinct("step") == [4, 8]
        rest, steps = fit("cut", 14)
        assert same(rest, whole) and steps == 14
        assert losses(db, "cut") == {step: {loss} for step, (loss,) in losses(db, "whole").items()}
        (trained,) = db.logs.find({"run": "cut", "step": 14, "train_loss": {"$exists": True}}).all()
        assert trained["train_loss"] == pytest.approx(sum(loss for (loss,) in list(losses(db, "cut").values())[8:]) / 6)

    def test_a_finished_run_does_nothing(self, db, fit):
        first, _ = fit("r", 8)
        sets, rows = db.params.find({"run": "r"}).count(), db.logs.find({"run": "r"}).count()
        again, steps = fit("r", 8)
        assert same(again, first) and steps == 8
        assert (db.params.find({"run": "r"}).count(), db.logs.find({"run": "r"}).count()) == (sets, rows)

    def test_an_explicit_checkpoint_wins(self, db, fit, tmp_path):
        whole, _ = fit("whole", 14)
        fit("r", 10, more={"save_strategy": "steps", "save_steps": 4})
        rest, _ = fit("r", 10, resume=str(tmp_path / "checkpoint-4"))
        assert [one.step for one in db.params.find({"run": "r"}, sort=[("_id", 1)])] == [4, 8, 8]
        assert losses(db, "r") == {step: losses(db, "whole")[step] for step in range(1, 11)}
        rest, steps = fit("r", 14)  # from what was saved after that
        assert same(rest, whole) and steps == 14

    def test_accumulated(self, db, fit):
        whole, _ = fit("whole", 6, accumulate=2)
        fit("cut", 4, accumulate=2)
        assert db.params.find({"run": "cut"}).distinct("step") == [4, 8]
        rest, steps = fit("cut", 6, accumulate=2)
        assert same(rest, whole) and steps == 6


def losses(db, run):
    """The losses that were logged at each step: several where it was made more than once."""
    found: dict[int, set[float]] = {}
    for row in db.logs.find({"run": run, "kind": "train", "loss": {"$exists": True}}):
        found.setdefault(row["step"], set()).add(row["loss"])
    return found
