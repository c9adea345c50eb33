"""One rank of two, in which many small loops run: `rank_cells.py URI BLOBS RANK STORE CELL...`.

Prints a line of JSON for each cell: the labels that this rank has got, for each epoch, or the error.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.data import DataLoader

from tensordb_data import Shard, TensorDB
from tensordb_data.errors import TensorDBError
from tensordb_data.torch import QueryDataset, StepCheckpointer

N, BATCH, EPOCHS = 64, 8, 2
MODES = {"batch": {"batch_size": BATCH}, "sample": {}}


class Rank:
    """The database, and the datasets that were made before the process group."""

    def __init__(self, uri: str, blobs: str, cells: list[str]) -> None:
        self.db = TensorDB(uri, blobs=blobs)
        self._made = {cell: self._dataset(cell) for cell in cells if "before" in cell.split("/")}

    def _dataset(self, cell: str) -> QueryDataset:
        parts = cell.split("/")
        options: dict[str, Any] = dict(MODES["batch" if "batch" in parts else "sample"])
        if "ranks" in parts:
            options |= {"rank": int(os.environ["RANK"]), "world_size": 2}
        if "alone" in parts:
            options |= {"rank": 0, "world_size": 1}
        if "tp" in parts or "dp" in parts:
            name = "tp" if "tp" in parts else "dp"
            options |= {"shard": Shard(mesh=init_device_mesh("cpu", (2,), mesh_dim_names=(name,)))}
        passes = None if "endless" in parts else 1
        found = self.db.data.find({"dataset": "numbers"})
        return QueryDataset(found, shuffle=True, passes=passes, fields=["label"], **options)

    def loader(self, cell: str) -> DataLoader[Any]:
        parts = cell.split("/")
        dataset = self._made.get(cell) or self._dataset(cell)
        size = None if "batch" in parts else BATCH
        workers = next((part for part in parts if part in ("fork", "forkserver")), None)
        more: dict[str, Any] = {} if workers is None else {"num_workers": 2, "multiprocessing_context": workers}
        return DataLoader(dataset, batch_size=size, **more)


def epochs(loader: Any) -> list[list[int]]:
    return [[label for batch in loader for label in batch["label"].tolist()] for _ in range(EPOCHS)]


def torch_alone(rank: Rank, cell: str) -> list[list[int]]:
    loader = rank.loader(cell)
    if "after" in cell.split("/"):
        return epochs(loader)
    found = []
    for epoch in range(EPOCHS):
        loader.dataset.set_epoch(epoch)  # type: ignore[attr-defined]
        found.append([label for batch in loader for label in batch["label"].tolist()])
    return found


def accelerate(rank: Rank, cell: str) -> list[list[int]]:
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    dispatch = next((part for part in cell.split("/") if part in ("None", "True", "False")), "None")
    config = DataLoaderConfiguration(dispatch_batches={"None": None, "True": True, "False": False}[dispatch])
    accelerator = Accelerator(cpu=True, dataloader_config=config)
    loader = rank.loader(cell)
    if "own" in cell.split("/"):
        from tensordb_data.torch.accelerate import prepare

        return epochs(prepare(accelerator, loader))
    return epochs(accelerator.prepare(loader))


def lightning(rank: Rank, cell: str) -> list[list[int]]:
    import lightning.pytorch as pl
    from lightning.pytorch.plugins.environments import TorchElasticEnvironment

    seen: list[list[int]] = []

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def on_train_epoch_start(self) -> None:
            seen.append([])

        def training_step(self, batch: Any, index: int) -> Any:
            seen[-1].extend(batch["label"].tolist())
            return self.layer(batch["label"].float()[:, None]).mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    trainer = pl.Trainer(
        max_epochs=EPOCHS, strategy="ddp", devices=2, accelerator="cpu", plugins=[TorchElasticEnvironment()],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(), rank.loader(cell))
    return seen


def trainer(rank: Rank, cell: str) -> list[list[int]]:
    how = next(part for part in cell.split("/") if part in DISPATCH)
    return [trained(rank.loader(cell).dataset, how, N // (2 * BATCH), [])[0]]


def trained(dataset: Any, how: str, steps: int, callbacks: list[Any]) -> tuple[list[int], list[float]]:
    """The labels that a Trainer has got, and the losses."""
    import transformers

    seen: list[int] = []
    losses: list[float] = []

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small()

        def forward(self, label: Any) -> dict[str, Any]:
            seen.extend(label[:, 0].long().tolist())
            loss = self.net(label / N).square().mean()
            losses.append(loss.item())
            return {"loss": loss}

    arguments = transformers.TrainingArguments(
        output_dir="/nonexistent", max_steps=steps, per_device_train_batch_size=BATCH, use_cpu=True,
        save_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=False,
        logging_strategy="no", accelerator_config={"dispatch_batches": DISPATCH[how], "split_batches": False},
        lr_scheduler_type="constant",
    )  # fmt: skip
    transformers.Trainer(
        model=Model(), args=arguments, train_dataset=dataset, callbacks=callbacks,
        data_collator=lambda samples: {"label": torch.tensor([[float(one["label"])] for one in samples])},
    ).train()  # fmt: skip
    return seen, losses


def trainer_losses(rank: Rank, run: str, steps: int, how: str) -> list[float]:
    from tensordb_data.torch.transformers import StepCheckpoint

    dataset = rank.loader("resume/sample/endless").dataset
    return trained(dataset, how, steps, [StepCheckpoint(rank.db, run, stream=dataset, every=4)])[1]


def fsdp1(rank: Rank, cell: str) -> list[list[int]]:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(torch.nn.Linear(4, 4), device_id=torch.device("cpu"))
    StepCheckpointer(rank.db, "r", model, every=3)
    return []


def tensor_parallel(rank: Rank, cell: str) -> list[list[int]]:
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    parallelize_module(model, init_device_mesh("cpu", (2,), mesh_dim_names=("tp",)), {"0": ColwiseParallel()})
    loader = rank.loader(cell)
    with StepCheckpointer(rank.db, cell, model, every=100, stream=loader) as checkpointer:
        next(iter(loader))
        checkpointer.step()
    return []


def resume(rank: Rank, cell: str) -> list[list[float]]:
    """The losses of a run, and those of one that was interrupted and resumed: 12 batches each."""
    kind, how = cell.split("/")[1:]
    once = {"accelerate": accelerate_losses, "lightning": lightning_losses, "trainer": trainer_losses}[kind]
    whole, cut = f"whole {kind} {how}", f"cut {kind} {how}"
    ends = (4, 6, 12) if how == "epochs" else (8, 12)  # epochs have four batches
    return [once(rank, whole, 12, how), [loss for end in ends for loss in once(rank, cut, end, how)]]


DISPATCH = {"None": None, "False": False, "True": True}


def small() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))


def accelerate_losses(rank: Rank, run: str, steps: int, how: str) -> list[float]:
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    from tensordb_data.torch.accelerate import prepare

    config = DataLoaderConfiguration(dispatch_batches=DISPATCH.get(how))
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, dataloader_config=config)
    if how in ("own", "epochs"):
        loader = prepare(accelerator, rank.loader("resume/batch/endless" if how == "own" else "resume/batch"))
    else:
        loader = accelerator.prepare(rank.loader("resume/sample/endless"))
    net = small()
    model, optimizer = accelerator.prepare(net, torch.optim.AdamW(net.parameters(), lr=0.01))
    losses: list[float] = []
    with StepCheckpointer(rank.db, run, model, optimizer, every=2, stream=loader) as checkpointer:
        start = checkpointer.restore()
        for number, batch in enumerate(itertools.chain.from_iterable(itertools.repeat(loader)), start + 1):
            with accelerator.accumulate(model):
                loss = model(batch["label"].float()[:, None] / N).square().mean()
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
            if accelerator.sync_gradients:
                checkpointer.step(loss=loss.item())
            if number == steps:
                break
    return losses


def lightning_losses(rank: Rank, run: str, steps: int, how: str) -> list[float]:
    import lightning.pytorch as pl
    from lightning.pytorch.plugins.environments import TorchElasticEnvironment

    from tensordb_data.torch.lightning import StepCheckpoint

    losses: list[float] = []

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = small()

        def training_step(self, batch: Any, index: int) -> Any:
            loss = self.net(batch["label"].float()[:, None] / N).square().mean()
            losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    loader = rank.loader(f"resume/{how}/endless")
    pl.Trainer(
        max_steps=steps, strategy="ddp", devices=2, accelerator="cpu", plugins=[TorchElasticEnvironment()],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[StepCheckpoint(rank.db, run, stream=loader.dataset, every=4)],
    ).fit(Module(), loader)  # fmt: skip
    return losses


KINDS: dict[str, Callable[[Rank, str], Any]] = {
    "resume": resume, "fsdp1": fsdp1, "torch": torch_alone, "accelerate": accelerate, "lightning": lightning,
    "trainer": trainer, "parallel": tensor_parallel,
}  # fmt: skip


def main(uri: str, blobs: str, number: str, store: str, *cells: str) -> None:
    warnings.simplefilter("ignore")
    multiprocessing.set_forkserver_preload(["tensordb_data.torch"])
    os.environ.update(RANK=number, LOCAL_RANK=number, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29599", TORCHELASTIC_RUN_ID="r")  # not used
    os.environ.update(ACCELERATE_USE_CPU="true", GROUP_RANK="0")
    rank = Rank(uri, blobs, list(cells))
    try:
        next(iter(rank.loader("torch/batch")))
    except TensorDBError as error:
        print(json.dumps(["too early", str(error)]), flush=True)
    dist.init_process_group("gloo", init_method="file://" + store, rank=int(number), world_size=2)
    for cell in cells:
        found: Any
        try:
            found = KINDS[cell.split("/")[0]](rank, cell)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        print(json.dumps([cell, found]), flush=True)
        dist.barrier()
    rank.db.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
