"""Hugging Face: a callback of `Trainer` that saves every N steps through a StepCheckpointer, and resumes `train`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tensordb_data.checkpoint.batch_counter import set_class
from tensordb_data.checkpoint.options import OLD_EVERY, OLD_OPTIONS
from tensordb_data.common.deprecation import moved_options
from tensordb_data.common.options import suggesting
from tensordb_data.errors import CheckpointError, MissingExtraError
from tensordb_data.torch.calling_loader import calling_trainer
from tensordb_data.torch.dataset import QueryDataset
from tensordb_data.torch.loggers.transformers import RunLogger
from tensordb_data.torch.trainer_callback import CallbackCheckpointer, SaverOptions, TrainerData

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise MissingExtraError(
        "tensordb_data.torch.transformers needs Transformers: pip install transformers accelerate"
    ) from error

__all__ = ["RunLogger", "StepCheckpoint"]

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tensordb_data.api.database import TensorDB


class StepCheckpoint(TrainerCallback):  # type: ignore[misc]
    """Saves model, optimizer, scheduler, RNG states and data position, and continues the run in `train`.

    Steps are batches that were trained on. The metrics of an evaluation become log rows of kind "valid", under the
    names that `Trainer` gives them (`eval_loss`), and `on_best` uses them too. Give the trainer `max_steps` and an
    endless QueryDataset, so that there is one epoch. Give it `save_strategy="no"`, since its own checkpoints are not
    needed. If `train(resume_from_checkpoint=...)` names one, the trainer goes on from that, and nothing is restored
    here. `train()` of a run that has made all of its steps makes none. The scaler of fp16 training is not saved; bf16
    has none.

    Args:
        db: The warehouse.
        run: Name of the run. `train()` continues the run of this name, if it has a checkpoint.
        stream: The QueryDataset that is given as `train_dataset`, in sample-wise mode: the trainer makes the batches.
            With several processes, the trainer divides the samples, and the dataset does not.
        save: Options of StepCheckpointer: `every`, `on_best`, `keep`, `tags`, `extra` and `options`.
    """

    @moved_options(OLD_EVERY, OLD_OPTIONS)
    @suggesting(SaverOptions)
    def __init__(self, db: TensorDB, run: str, *, stream: Any = None, **save: Unpack[SaverOptions]) -> None:
        self.db, self.run = db, run
        self._save = save
        self._stream = stream
        self._checkpointer: CallbackCheckpointer | None = None
        self._fetching = False
        self._skips = 0  # batches that the trainer skips before its first step
        self._finished: _Emptied | None = None  # the loader of a run that has made all of its steps

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore model, optimizer and scheduler, which the trainer has made."""
        if self._checkpointer is not None:  # of a training that an error has ended
            checkpointer, self._checkpointer = self._checkpointer, None
            checkpointer.close()
        data = None
        if self._stream is not None:
            if not isinstance(self._stream, QueryDataset):
                raise CheckpointError(
                    f"stream= is the QueryDataset given as train_dataset; found a {type(self._stream).__name__}"
                )
            loader = SimpleNamespace(num_workers=args.dataloader_num_workers, batch_size=args.train_batch_size)
            data = TrainerData(self._stream, loader)
        extra = {"progress": _Progress(state), **(self._save.get("extra") or {})}
        stateful = {"optimizer": kwargs["optimizer"], "scheduler": kwargs.get("lr_scheduler")}
        save: SaverOptions = {**self._save, "extra": extra}
        self._checkpointer = CallbackCheckpointer(self.db, self.run, data, kwargs["model"], stateful, **save)
        caller = calling_trainer()
        self._skips = 0
        if caller.resumes or state.global_step:
            self._skips = 0 if data is None else caller.skips
            batches = 1 if data is None else args.gradient_accumulation_steps
            self._checkpointer.start_at(state.global_step * batches, self._skips)
            return
        if self._checkpointer.restore() and caller.trainer is None:
            warnings.warn("no Trainer was found: the first loss that it reports after a resume is wrong", stacklevel=2)
        for counted_from in ("_globalstep_last_logged", "_initial_global_step"):
            if hasattr(caller.trainer, counted_from):  # it has noted 0, and divides the loss by the steps since then
                setattr(caller.trainer, counted_from, state.global_step)
        if 0 < state.max_steps <= state.global_step:
            self._finished = _Emptied(kwargs["train_dataloader"])

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note that the trainer is about to make the iterator of its data."""
        self._fetching = True
        if self._checkpointer is not None:
            self._checkpointer.begin()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the random states after the iterator was made."""
        if self._fetching and self._checkpointer is not None:
            self._fetching = False
            self._checkpointer.iterator_made()
            self._checkpointer.skipped(self._skips)
            self._skips = 0

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count a batch whose gradients are accumulated."""
        if self._checkpointer is not None:
            self._checkpointer.trained(False)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count a batch, and a step of the optimizer."""
        if self._checkpointer is not None:
            self._checkpointer.trained(True)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the metrics of the model as it is now."""
        if self._checkpointer is not None:
            self._checkpointer.evaluated(kwargs.get("metrics") or {})

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Log what the trainer reports of its training: loss, learning rate and the like."""
        reported = {name: value for name, value in (logs or {}).items() if not name.startswith("eval_")}
        if self._checkpointer is not None and reported and self._finished is None:
            self._checkpointer.reported(reported)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Of a run that was finished already, there is nothing to evaluate or save."""
        if self._finished is not None:
            control.should_evaluate = control.should_save = control.should_log = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait until every save is durable."""
        if self._finished is not None:
            finished, self._finished = self._finished, None
            finished.fill()
        if self._checkpointer is not None:
            checkpointer, self._checkpointer = self._checkpointer, None
            checkpointer.close()


class _Emptied:
    """A loader that gives nothing until `fill()`: a trainer makes a step before it looks at how many there are."""

    def __init__(self, loader: Any) -> None:
        self._loader, self._kind = loader, type(loader)
        set_class(loader, type(self._kind.__name__, (self._kind,), {"__iter__": lambda _: iter(())}))

    def fill(self) -> None:
        set_class(self._loader, self._kind)


class _Progress:
    """The numbers that the trainer itself counts."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def state_dict(self) -> dict[str, int]:
        return {"step": int(self._state.global_step)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._state.global_step = state["step"]
