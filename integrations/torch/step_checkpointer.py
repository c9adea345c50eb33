"""StepCheckpointer: the parameters, optimizer, RNG and data position of a torch loop, saved every N steps."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import torch

from tensordb_data.checkpoint import rng
from tensordb_data.checkpoint.batch_counter import BatchCounter
from tensordb_data.checkpoint.checkpointer import Checkpointer
from tensordb_data.checkpoint.controls import SaveControls
from tensordb_data.checkpoint.options import OLD_EVERY, OLD_OPTIONS, Every, SaveOptions
from tensordb_data.common.deprecation import moved_options
from tensordb_data.common.options import suggesting
from tensordb_data.errors import CheckpointError, StateError
from tensordb_data.params.apply import check_torch, into_torch
from tensordb_data.params.lineage import name_of, of_data
from tensordb_data.params.load import describe
from tensordb_data.params.retention import Keep
from tensordb_data.tensors.divided import with_local_pieces
from tensordb_data.torch.data_position import Position, position_of
from tensordb_data.torch.optimizer_state import ParameterNames, by_number, in_order_of
from tensordb_data.torch.ranks import ranks
from tensordb_data.torch.restore import all_or_none, check_kinds, kind_of
from tensordb_data.torch.sharded_model import (
    is_sharded,
    pairs_of,
    refuse_fsdp1,
    refuse_other_batches,
    unwrapped,
)

if TYPE_CHECKING:
    from tensordb_data.api.database import TensorDB


class StepCheckpointer(SaveControls):
    """Saves the state of a training loop every N steps, in the background, and resumes the loop where it was.

    The step number is the number of batches that the loop has received from `stream`, in this process. Batches that
    worker processes have prefetched do not count. Calls of `step()` do not count either, so with gradient accumulation
    call `step()` once per optimizer step. Without a stream, calls of `step()` are counted.

    A save copies model, optimizer, scheduler, scaler, RNG states (Python, NumPy, torch, CUDA) and position at one
    instant. The loop waits for this copy only. A save is due by `every` or by `on_best`. An error in the background is
    raised by the next `step()`, by `wait()` or by `close()`.

    After SIGTERM, SIGHUP, SIGUSR1 or Ctrl-C the last complete step is saved, and then the signal ends the process as
    usual. A signal is handled when a step ends or when the loop waits for data. If a step takes longer than 10 seconds
    (`SaveOptions(grace=)`), the process ends with the saves that were taken before. A second signal ends the process at
    once.

    A resumed run continues exactly as it would have without the interruption, as far as its own computation is
    deterministic: on the CPU, the losses are the same, bit for bit. Gradients are not saved. Numbers that a transform
    draws from global RNGs in worker processes are not restored; draw from the `rng` that the transform gets.

    Under `torch.distributed` each process makes a StepCheckpointer with the same arguments, restores, and calls
    `step()`. Process 0 stores. All processes restore the same checkpoint, each with its own RNG states. At each step
    they agree whether a save is due, and whether one of them has received a signal. Of a sharded model (FSDP2, DTensor)
    each process stores and restores its own parts. Its checkpoint can be loaded by any number of processes, and into
    plain modules too.

    Use it as a context manager, or call `close()`. A process that ends without `close()` still stores the saves that
    were taken.

    Args:
        db: The warehouse.
        run: Name of the run. `restore()` continues the run of this name.
        model: The module, or what DistributedDataParallel, DataParallel or `torch.compile` has made of it. Its tensors
            are stored by the names of the module within.
        optimizer: The optimizer, or None.
        every: How often to save: `every=200` steps, or `every=Every(steps=200, seconds=60)`, or as often as a budget
            allows, `every=Every(overhead=0.02)`; see `Every`.
        on_best: Save when this metric of `step()` is better than in any checkpoint of the run: `"acc"`, or
            `("loss", "min")` if less is better.
        stream: The object that the loop iterates: a DataLoader over a QueryDataset, a Stream, or a StatefulDataLoader.
            Its class is replaced by a counting subclass until `close()`.
        scheduler: Anything with `state_dict` and `load_state_dict`, such as a learning-rate scheduler.
        scaler: A `torch.amp.GradScaler`.
        extra: More such objects by name, for example an EMA of the model.
        tags: Tags of every checkpoint and log row.
        keep: Which training states of the run stay, for example `Keep(last=3, best=("val_acc", 2), every=1000)`. It is
            applied after each save, and can be changed later (`db.params.prune`). By default all of them stay.
        options: How to save: the memory for copies, what a full memory means, the signals, the architecture and the
            parent that are noted; see `SaveOptions`.

    Raises:
        CheckpointError: An argument is malformed, or the model is sharded by FSDP1.
    """

    @moved_options(OLD_EVERY, OLD_OPTIONS)
    @suggesting()
    def __init__(
        self,
        db: TensorDB,
        run: str,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        every: int | Every | None = None,
        on_best: str | tuple[str, str] | None = None,
        stream: Any = None,
        scheduler: Any = None,
        scaler: Any = None,
        extra: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        keep: Keep | None = None,
        options: SaveOptions | None = None,
    ) -> None:
        self.run = run
        self._model = model
        self._names = ParameterNames(model)
        named = {"optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, **(extra or {})}
        self._stateful = {name: value for name, value in named.items() if value is not None}
        for name, value in self._stateful.items():
            if not (callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))):
                raise CheckpointError(
                    f"{name}= needs state_dict() and load_state_dict(); found a {type(value).__name__}"
                )
            if name in _OWN:
                raise CheckpointError(f"extra= has {name!r}, which is a name of ours; name it otherwise")
        options = SaveOptions.of(options)
        lineage = {"model": name_of(unwrapped(model)), "architecture": options.architecture, "data": of_data(stream)}
        if optimizer is not None:
            lineage["optimizer"] = name_of(optimizer)
        refuse_fsdp1(model)
        self._ranks = ranks()
        self._sharded = is_sharded(model)
        self._batch_counter = None if stream is None else self._count(stream)
        try:
            self._position = None if self._batch_counter is None else self._locate(stream, self._batch_counter)
            self._core = Checkpointer(
                db.warehouse, run, self._state, every=every, on_best=on_best, tags=tags, lineage=lineage, keep=keep,
                peers=self._ranks, batch_counter=self._batch_counter, options=options,
            )  # fmt: skip
        except BaseException:
            if self._batch_counter is not None:
                self._batch_counter.close()
            raise
        self._start = 0
        self._calls = 0
        self._rng: dict[str, Any] | None = None  # restored once more when the loop begins
        if self._batch_counter is not None:
            self._batch_counter.on_iterate = self._restore_rng_again

    @property
    def last_step(self) -> int:
        """The last step that has ended or was restored."""
        return self._core.last_step

    def restore(self, step: int | None = None, *, missing: Literal["error", "fresh"] = "error") -> int:
        """Continues the run: loads the checkpoint of the run that was saved last. Call it before the loop begins.

        Args:
            step: Go back to the checkpoint of this step. The checkpoints that are saved after it are then the newest.
            missing: What to do with an object that the checkpoint has no state for, since it was added later (an EMA in
                `extra`, say): an error, or `"fresh"`: it stays as it is, which is said.

        Returns:
            The step to continue from, 0 if nothing has been saved.

        Raises:
            StateError: Something does not fit the checkpoint: the model, the stream, the class of the optimizer or the
                scheduler, the names of parameters, or an object refuses its state. Nothing was changed.
            CorruptBlobError: Stored bytes are damaged. The message says which checkpoint is intact. An older checkpoint
                is never loaded silently.
            NotFoundError: There is no checkpoint of that step.
        """
        if self._batch_counter is not None and self._batch_counter.count:
            raise CheckpointError("restore() comes before the loop: it has received batches already.")
        divided = self._divided if self._sharded else None
        if self._ranks is not None:
            found = self._ranks.load(self._core, step, divided)
        else:
            document = self._core.find(step)
            found = None if document is None else (document, self._core.read(document, divided))
        if found is None:
            return 0
        document, parts = found
        label = describe(document)
        parts = self._checked(label, parts, missing, document.get("lineage", {}))
        with all_or_none(label) as load:
            for name, value in self._stateful.items():
                if name in parts:
                    load(name, value, parts[name])
            if self._position is not None and "stream" in parts:
                self._position.load(parts["stream"], parts.get("plans", {}))
            into_torch(self._model, parts["model"], label)
        own = parts["rng"] if self._ranks is None else self._ranks.own(parts["rng"])
        rng.apply(own)
        # a run that was interrupted between two iterations had not made the draw yet (see _restore_rng_again)
        self._rng = None if parts["training"].get("at_end") else own
        self._start = int(parts["training"]["step"])
        self._calls = 0
        self._core.start_at(self._start, document["_id"])
        return self._start

    def step(self, /, **metrics: Any) -> None:
        """Call this when an optimizer step has ended. It saves if a save is due, and returns at once.

        Args:
            metrics: Numbers and short texts, such as `loss=loss`. They are logged as a row of kind "train", and stored
                with the checkpoint if one is saved.

        Raises:
            CheckpointError: An earlier save failed; or the loop does not iterate the object given as `stream`; or
                processes that hold parts of one layer get different batches.
        """
        self._calls += 1
        if self._batch_counter is not None and self._batch_counter.count == 0:
            raise CheckpointError(
                "step() was called, but no batch came from the object given as stream=. Give the "
                "checkpointer the very object "
                "that the loop iterates, before the loop begins."
            )
        if self._calls == 1 and self._sharded and self._position is not None:
            refuse_other_batches(self._model, self._position.world_size())
        self._core.end_step(self._step_now(), metrics)

    def __enter__(self) -> StepCheckpointer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as failed:
            if error is None:
                raise
            warnings.warn(f"while leaving on {type(error).__name__}: {failed}", stacklevel=2)

    def __repr__(self) -> str:
        return f"StepCheckpointer(run={self.run!r}, every={self._core.schedule.every}, last_step={self.last_step})"

    def _count(self, stream: Any) -> BatchCounter:
        return BatchCounter(stream)

    def _locate(self, stream: Any, batch_counter: BatchCounter) -> Position:
        return position_of(stream, batch_counter)

    def _step_now(self) -> int:
        return self._start + (self._calls if self._batch_counter is None else self._batch_counter.count)

    def _state(self, step: int) -> dict[str, Any]:
        state: dict[str, Any] = {name: value.state_dict() for name, value in self._stateful.items()}
        state["model"] = unwrapped(self._model).state_dict()
        names = sorted(state["model"]) if self._sharded else None
        if self._sharded:
            state = with_local_pieces(state)
        state["rng"] = rng.capture()
        if self._ranks is not None:
            state["rng"]["ranks"] = self._ranks.meet(state["rng"], names)
        state["training"] = {
            "step": step, "framework": "torch", "torch": torch.version.__version__,
            "kinds": {name: kind_of(value) for name, value in self._stateful.items()},
            "parameters": {name: self._names.of(value) for name, value in self._optimizers.items()},
        }  # fmt: skip
        if self._position is not None:
            state["stream"] = self._position.state()
            if plans := self._position.plans(state["stream"]):
                state["plans"] = plans
            state["training"]["at_end"] = self._position.at_end()
        return state

    @property
    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Those whose parameters have numbers in their states."""
        return {name: one for name, one in self._stateful.items() if isinstance(one, torch.optim.Optimizer)}

    def _divided(self, parts: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
        """See `params.load.Divided`."""
        return pairs_of(unwrapped(self._model), self._stateful, parts)

    def _checked(
        self, label: str, parts: Mapping[str, Any], missing: str, lineage: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The parts, as the objects here take them. Raises if one does not fit, before anything is changed."""
        if missing not in ("error", "fresh"):
            raise CheckpointError(f'missing= is "error" or "fresh"; found {missing!r}')
        if (framework := parts["training"].get("framework")) != "torch":
            raise StateError(f"{label} is a training state of {framework}, not of torch. Use another run name.")
        ours = {*self._stateful, *(["stream"] if self._position is not None else [])}
        if absent := ", ".join(sorted(ours - set(parts))):
            if missing == "error":
                raise StateError(
                    f"{label} has no {absent}: it was saved without. Make the checkpointer as it was made then, begin "
                    'another run, or let what is new start as it is: restore(missing="fresh").'
                )
            warnings.warn(f"{label} has no {absent}: this starts as it is.", stacklevel=3)
        if ignored := sorted(set(parts) - ours - {"model", "plans", "rng", "training"}):
            warnings.warn(
                f"{label} has {', '.join(ignored)} too, which this checkpointer was not given: not restored.",
                stacklevel=3,
            )
        check_torch(self._model, parts["model"], label)
        training = parts["training"]
        there = {name: value for name, value in self._stateful.items() if name in parts}
        kinds = training.get("kinds") or {name: lineage[name] for name in ("optimizer",) if name in lineage}
        check_kinds(there, kinds, label)
        names = training.get("parameters", {})
        found = dict(parts)
        for name, one in self._optimizers.items():
            if name in parts:
                state, saved = by_number(parts[name], names.get(name))
                found[name] = in_order_of(one, self._names.of(one), state, saved, label)
        return found

    def _restore_rng_again(self) -> None:
        # The iterator of a DataLoader draws from torch's generator when it is made. The interrupted run made its draw
        # before the save. So the random states are restored again, after this run has made its own draw.
        if self._rng is not None:
            rng.apply(self._rng)
            self._rng = None


_OWN = frozenset(("model", "plans", "rng", "stream", "training"))
