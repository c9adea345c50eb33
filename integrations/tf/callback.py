"""StepCheckpoint: a Keras callback that saves every N optimizer steps, and resumes `fit` where it was."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras

from tensordb_data.checkpoint import rng
from tensordb_data.checkpoint.checkpointer import Checkpointer
from tensordb_data.checkpoint.controls import SaveControls
from tensordb_data.checkpoint.options import OLD_EVERY, OLD_OPTIONS, Every, SaveOptions
from tensordb_data.common.deprecation import moved_options
from tensordb_data.common.options import suggesting
from tensordb_data.errors import CheckpointError, StateError
from tensordb_data.params.apply_keras import assign, check_keras, named_values, variable_names
from tensordb_data.params.lineage import name_of, of_data
from tensordb_data.params.load import describe
from tensordb_data.params.retention import Keep
from tensordb_data.stream.deliver.stream import Stream
from tensordb_data.tf.optimizers import find_values, kinds, optimizers_of, read, save_optimizers, steps_of

if TYPE_CHECKING:
    from tensordb_data.api.database import TensorDB


class StepCheckpoint(SaveControls, keras.callbacks.Callback):  # type: ignore[misc]
    """Saves model, optimizer, seeds, RNG states and stream position every N optimizer steps, in the background.

    Steps are those of `optimizer.iterations`. If the model holds more optimizers as attributes, as a GAN does, all of
    them are saved, and the one that has made the most steps counts. With `steps_per_execution=8` Keras calls back every
    8 steps only. Then a save is made at the first call at or after a multiple of `every`. The metrics that Keras
    reports are logged as rows of kind "train" and stored with the checkpoint. They are means since the epoch began. At
    the end of an epoch, a row of kind "epoch" has the validation metrics.

    tf.data fetches ahead, so the stream itself does not know which batches `fit` has used. The callback counts them. A
    resumed `fit` gets the batches that the interrupted one would have got next, if the dataset is
    `query_dataset(stream)`, followed only by deterministic steps of one batch to one batch (`map`, `prefetch`). The
    stream must be endless, the default, and `fit` needs `steps_per_epoch`: Keras assumes that all epochs are as long as
    the first one that it sees, so after a resume in the middle of a finite dataset all epochs would be too short.

    Restored are weights, optimizer variables, and the seeds of Dropout and other random layers. So on the CPU, a
    resumed run gives the same weights. Keras does not allow to restore these:

    - metrics that are summed up within the epoch;
    - the number of the epoch (pass `initial_epoch` to `fit`; an interrupted epoch begins again, in its full length);
    - other callbacks;
    - the generators inside TensorFlow that have no seed in the model.

    After SIGTERM, SIGHUP, SIGUSR1 or Ctrl-C the callback saves at the end of the step, and then the process ends.

    Args:
        db: The warehouse.
        run: Name of the run. `restore` continues the run of this name.
        every: How often to save: `every=200` optimizer steps, or `every=Every(steps=200, seconds=60)`, or as often as a
            budget allows, `every=Every(overhead=0.02)`; see `Every`.
        on_best: Save when this metric, at the end of a step or an epoch, is better than in any checkpoint of the run:
            `"val_accuracy"`, or `("val_loss", "min")` if less is better.
        stream: The Stream behind the dataset that `fit` gets.
        tags: Tags of every checkpoint and log row.
        keep: Which training states of the run stay, for example `Keep(last=3, best=("val_acc", 2), every=1000)`. It is
            applied after each save, and can be changed later (`db.params.prune`). By default all of them stay.
        options: How to save: the memory for copies, what a full memory means, the signals, the architecture and the
            parent that are noted; see `SaveOptions`.
    """

    @moved_options(OLD_EVERY, OLD_OPTIONS)
    @suggesting()
    def __init__(
        self,
        db: TensorDB,
        run: str,
        *,
        every: int | Every | None = None,
        on_best: str | tuple[str, str] | None = None,
        stream: Stream | None = None,
        tags: Sequence[str] = (),
        keep: Keep | None = None,
        options: SaveOptions | None = None,
    ) -> None:
        super().__init__()
        self.run = run
        if stream is not None and not hasattr(stream, "advance"):
            raise CheckpointError(f"stream= is the Stream given to query_dataset; found a {type(stream).__name__}")
        if stream is not None and stream.spec.passes is not None:
            raise CheckpointError(
                f"stream= must be endless; this one ends after passes={stream.spec.passes}. Leave passes out, and "
                "give fit() steps_per_epoch. Without stream= a resumed fit begins at the start of the data."
            )
        self._stream = stream
        if stream is not None:
            stream._begin_iteration()
        self._first = None if stream is None else stream.state_dict()
        self._resumed: dict[str, Any] | None = None
        self._batches = 0  # batches that fit has received in this iteration of the dataset
        self._begin = 0
        self._iterated = False
        self._restored: list[Any] = []  # the optimizers that were restored, until fit begins
        self._trained = 0  # batches of this fit
        options = SaveOptions.of(options)
        lineage = {"architecture": options.architecture, "data": of_data(stream)}
        self._core = Checkpointer(
            db.warehouse, run, self._state, every=every, on_best=on_best, tags=tags, lineage=lineage, keep=keep,
            options=options,
        )  # fmt: skip

    def restore(self, model: keras.Model, step: int | None = None) -> int:
        """Continues the run: loads its last checkpoint. Compile the model, call this, then call `fit`.

        Args:
            model: The model that `fit` will train.
            step: Go back to the checkpoint of this step. The checkpoints that are saved after it are then the newest.

        Returns:
            The step to continue from, 0 if nothing has been saved.

        Raises:
            StateError: Model, optimizer or stream do not fit the checkpoint.
            CorruptBlobError: Stored bytes are damaged. The message says which checkpoint is intact.
            NotFoundError: There is no checkpoint of that step.
        """
        found = self._core.load(step)
        if found is None:
            return 0
        document, parts = found
        label = describe(document)
        if (framework := parts["training"].get("framework")) != "keras":
            raise StateError(f"{label} is a training state of {framework}, not of Keras. Use another run name.")
        if ("stream" in parts) != (self._stream is not None):
            if self._stream is not None:
                raise StateError(
                    f"{label} was saved without a stream: make the callback without stream=, or begin another run."
                )
            warnings.warn(f"{label} has a stream position too, and stream= was not given: not restored.", stacklevel=2)
        slots, moments = find_values(model, parts, label)
        seeds = _seeds(model)
        check_keras(model, seeds, parts["seeds"], label)
        variables = [*model.weights, *seeds, *slots]
        values = [
            *named_values(model, model.weights, variable_names(model), parts["model"], label),
            *parts["seeds"],
            *moments,
        ]
        if self._stream is not None:
            self._stream.load_state_dict(parts["stream"], plans=parts.get("plans"))
            self._resumed = self._stream.state_dict()
        assign(model, variables, values, label)
        self._restored = list(optimizers_of(model).values())
        rng.apply(parts["rng"])
        self._iterated, self._batches = False, 0
        found_step = int(parts["training"]["step"])
        self._core.start_at(found_step, document["_id"])
        return found_step

    # What Keras calls

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Note that a fit begins, and with it an iteration of the dataset."""
        optimizers = optimizers_of(self.model)
        restored, self._restored = self._restored, []
        if any(all(before is not one for one in optimizers.values()) for before in restored):
            raise CheckpointError(
                "compile() was called after restore(): the model has a new optimizer, without the state that was "
                "restored. Compile first, then restore."
            )
        self._core.made_from(
            model=name_of(self.model), optimizer=", ".join(map(name_of, optimizers.values()))
        )
        self._core.begin_at(steps_of(self.model))
        self._trained = 0
        self._iteration()

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Remember the first batch of this execution."""
        self._begin = batch

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Count one or more steps, and save if a save is due."""
        self._batches += batch - self._begin + 1
        self._trained += batch - self._begin + 1
        self._core.end_step(steps_of(self.model), dict(logs or {}))

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Log the metrics of the epoch."""
        if logs:
            self._core.log(self._core.last_step, "epoch", {"epoch": epoch, **logs})
            self._core.evaluated(dict(logs or {}))

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Wait until every save is durable."""
        if self._trained and not steps_of(self.model):
            warnings.warn(
                f"{self._trained} batches were trained on, and no optimizer of the model has made a step, so nothing "
                "was saved: steps are counted by model.optimizer and by optimizers that are attributes of the model",
                stacklevel=2,
            )
        self._core.suspend()

    def _iteration(self) -> None:
        if self._resumed is not None and self._iterated and self._stream is not None and self._first is not None:
            self._stream.load_state_dict(self._first)  # the resumed position is for the first iteration only
            self._resumed = None
        self._iterated, self._batches = True, 0

    def _state(self, step: int) -> dict[str, Any]:
        state: dict[str, Any] = {
            "model": dict(zip(variable_names(self.model), map(read, self.model.weights), strict=True)),
            "seeds": [read(variable) for variable in _seeds(self.model)],
            **save_optimizers(self.model),
            "rng": rng.capture(),
            "training": {
                "step": step,
                "framework": "keras",
                "keras": keras.__version__,
                **kinds(self.model),
            },
        }
        if self._stream is not None:
            state["stream"] = self._stream.advance(self._stream.state_dict(), self._batches)
            if plans := self._stream.plans(state["stream"]):
                state["plans"] = plans
        return state


def _seeds(model: Any) -> list[Any]:
    weights = {id(variable) for variable in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]
