"""Other ways to save a model, each as its documentation shows, for `checkpoint_stall.py`."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Calls = tuple[Callable[[int], None], Callable[[], None]]
"""What to call after a step, and what waits until all is written."""


def peer(name: str, folder: Path) -> Callable[[Any, int], Any]:
    @contextlib.contextmanager
    def open_(model: Any, every: int) -> Iterator[Calls]:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            with PEERS[name](model, folder) as calls:
                yield calls
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return open_


@contextlib.contextmanager
def torch_save(model: Any, folder: Path) -> Iterator[Calls]:
    import torch

    yield lambda number: torch.save(model.state_dict(), folder / f"{number}.pt"), lambda: None


@contextlib.contextmanager
def safetensors_file(model: Any, folder: Path) -> Iterator[Calls]:
    from safetensors.torch import save_file

    yield lambda number: save_file(model.state_dict(), folder / f"{number}.safetensors"), lambda: None


@contextlib.contextmanager
def dcp(model: Any, folder: Path) -> Iterator[Calls]:
    """torch's asynchronous save with its staging buffers kept; one save at a time, as it demands."""
    import torch
    import torch.distributed as dist
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
    from torch.distributed.checkpoint.state_dict_saver import async_save

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    # pinned memory and copies beside the host need CUDA
    pin = torch.cuda.is_available()
    stager = DefaultStager(StagingOptions(pin, True, False, pin))
    pending: list[Any] = []

    def drain() -> None:
        while pending:
            pending.pop().result()

    def save(number: int) -> None:
        drain()
        writer = FileSystemWriter(folder / str(number), sync_files=False)
        state = dict(model.state_dict())  # some versions of the stager cannot copy what comes with a state dict
        pending.append(async_save({"model": state}, storage_writer=writer, async_stager=stager))

    try:
        yield save, drain
        drain()
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def orbax(model: Any, folder: Path) -> Iterator[Calls]:
    import orbax.checkpoint as ocp  # type: ignore[import-not-found]

    with ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler()) as checkpointer:

        def save(number: int) -> None:
            state = {name: value.numpy() for name, value in model.state_dict().items()}
            checkpointer.save(folder / str(number), args=ocp.args.StandardSave(state))

        yield save, checkpointer.wait_until_finished


@contextlib.contextmanager
def keras_callback(model: Any, folder: Path) -> Iterator[Calls]:
    """`ModelCheckpoint(save_freq=1)` on a Keras model of the same parameters, called as `fit` calls it."""
    import keras

    shape = model[0].in_features
    same = keras.Sequential([keras.Input((shape,)), *[keras.layers.Dense(shape, use_bias=False) for _ in model]])
    same.set_weights([layer.weight.detach().numpy().T for layer in model])
    callback = keras.callbacks.ModelCheckpoint(folder / "{epoch}.weights.h5", save_freq=1, save_weights_only=True)
    callback.set_model(same)

    def save(number: int) -> None:
        callback.on_epoch_begin(number)
        callback.on_train_batch_end(number, {})

    yield save, lambda: None
    keras.backend.clear_session()


PEERS: dict[str, Callable[[Any, Path], Any]] = {
    "torch.save": torch_save,
    "safetensors": safetensors_file,
    "dcp": dcp,
    "orbax": orbax,
    "keras": keras_callback,
}
