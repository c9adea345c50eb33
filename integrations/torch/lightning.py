"""PyTorch Lightning: a callback that saves every N steps through a StepCheckpointer, and resumes `fit`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tensordb_data.checkpoint.options import OLD_EVERY, OLD_OPTIONS
from tensordb_data.common.deprecation import moved_options
from tensordb_data.common.options import suggesting
from tensordb_data.errors import MissingExtraError
from tensordb_data.torch.loggers.lightning import RunLogger
from tensordb_data.torch.trainer_callback import CallbackCheckpointer, SaverOptions, TrainerData

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError as error:
        raise MissingExtraError("tensordb_data.torch.lightning needs Lightning: pip install lightning") from error

__all__ = ["RunLogger", "StepCheckpoint"]

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tensordb_data.api.database import TensorDB


class StepCheckpoint(Callback):  # type: ignore[misc]
    """Saves model, optimizers, schedulers, scaler, RNG states and data position, and continues the run in `fit`.

    Steps are batches that were trained on. The metrics that `training_step` logs become log rows of kind "train", those
    of `validation_step` rows of kind "valid", and `on_best` uses both. Of the trainer's own progress, the numbers of
    the step (for `max_steps`) and of the epoch are restored. With an endless dataset, the default, there is one epoch,
    and the resume is exact. If `fit(ckpt_path=...)` names a checkpoint of Lightning, the trainer goes on from that, and
    nothing is restored here: the data begins where the trainer begins it.

    Args:
        db: The warehouse.
        run: Name of the run. `fit` continues the run of this name, if it has a checkpoint.
        stream: The QueryDataset of the trainer's DataLoader, or this DataLoader.
        save: Options of StepCheckpointer: `every`, `on_best`, `keep`, `tags`, `extra` and `options`.
    """

    @moved_options(OLD_EVERY, OLD_OPTIONS)
    @suggesting(SaverOptions)
    def __init__(self, db: TensorDB, run: str, *, stream: Any = None, **save: Unpack[SaverOptions]) -> None:
        super().__init__()
        self.db, self.run = db, run
        self._save = save
        self._data = None if stream is None else TrainerData(stream)
        self._checkpointer: CallbackCheckpointer | None = None
        self._steps = 0
        self._valid: set[str] = set()  # names of metrics of the validation
        self._trained: set[str] = set()  # and of the training

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Set the data to its position, before the trainer fetches its first batch."""
        if self._data is not None and not trainer.ckpt_path:
            self._data.resume(self.db, self.run)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Restore model and optimizer, which the trainer has made."""
        extra = {f"scheduler_{i}": one.scheduler for i, one in enumerate(trainer.lr_scheduler_configs)}
        extra |= {"progress": _Progress(trainer), **(self._save.get("extra") or {})}
        extra |= {f"optimizer_{i}": one for i, one in enumerate(trainer.optimizers) if i}
        first = trainer.optimizers[0] if trainer.optimizers else None
        stateful = {"optimizer": first, "scaler": getattr(trainer.precision_plugin, "scaler", None)}
        save: SaverOptions = {**self._save, "extra": extra}
        self._checkpointer = CallbackCheckpointer(self.db, self.run, self._data, pl_module, stateful, **save)
        if not trainer.ckpt_path:
            self._checkpointer.restore()
        elif self._data is None:
            self._checkpointer.start_at(trainer.global_step)
        else:
            self._checkpointer.start_at(trainer.fit_loop.epoch_loop.batch_progress.total.processed)
        self._steps = trainer.global_step

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Note that the loader of the trainer begins an iteration."""
        if self._checkpointer is not None:
            self._checkpointer.begin()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count a batch, and a step if the optimizer has made one."""
        if self._checkpointer is not None:
            stepped, self._steps = trainer.global_step != self._steps, trainer.global_step
            found = self._reported(trainer) if stepped else {}
            metrics = {name: value for name, value in found.items() if name not in self._valid}
            self._trained |= metrics.keys()
            self._checkpointer.trained(stepped, metrics)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the metrics of the model as it is now."""
        if self._checkpointer is not None and not trainer.sanity_checking:
            metrics = self._reported(trainer)
            self._valid |= metrics.keys() - self._trained
            self._checkpointer.evaluated({name: metrics[name] for name in metrics if name in self._valid})

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Wait until every save is durable."""
        self._end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Wait until every save that was taken before the error is durable."""
        self._end()

    @staticmethod
    def _reported(trainer: Any) -> dict[str, Any]:
        """What the module has logged so far, of its training and its validation."""
        return {name: value.detach().clone() for name, value in trainer.callback_metrics.items()}

    def _end(self) -> None:
        if self._checkpointer is not None:
            checkpointer, self._checkpointer = self._checkpointer, None
            checkpointer.close()


class _Progress:
    """The numbers that the trainer itself counts."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def state_dict(self) -> dict[str, int]:
        return {"step": int(self._trainer.global_step), "epoch": int(self._trainer.current_epoch)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        loop = self._trainer.fit_loop
        if self._trainer.lightning_module.automatic_optimization:
            steps = loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
        else:
            steps = loop.epoch_loop.manual_optimization.optim_step_progress.total
        steps.ready = steps.completed = state["step"]
        loop.epoch_loop._batches_that_stepped = state["step"]
        loop.epoch_progress.current.processed = loop.epoch_progress.current.completed = state["epoch"]
