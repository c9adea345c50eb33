"""CallbackCheckpointer: a StepCheckpointer for the callbacks of a trainer, which has its own training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from tensordb_data.checkpoint.batch_counter import BatchCounter, ManualBatchCounter
from tensordb_data.checkpoint.options import Every, SaveOptions
from tensordb_data.checkpoint.run_saver import newest_set
from tensordb_data.params.load import load_parts
from tensordb_data.params.retention import Keep
from tensordb_data.torch.data_position import DatasetPosition, Position, position_of
from tensordb_data.torch.step_checkpointer import StepCheckpointer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tensordb_data.api.database import TensorDB


class SaverOptions(TypedDict, total=False):
    """The options of a StepCheckpointer that stay the user's where a trainer has the loop. They are described there."""

    every: int | Every | None
    on_best: str | tuple[str, str] | None
    extra: Mapping[str, Any] | None
    tags: Sequence[str]
    keep: Keep | None
    options: SaveOptions | None


class CallbackCheckpointer(StepCheckpointer):
    """A StepCheckpointer that is told which batches the trainer has trained on.

    Args:
        db: The warehouse.
        run: Name of the run.
        data: The data of the trainer. None if its position is not to be saved.
        model: The module.
        stateful: The trainer's optimizer, scheduler and scaler, by these names.
        options: Options of StepCheckpointer.
    """

    def __init__(
        self,
        db: TensorDB,
        run: str,
        data: TrainerData | None,
        model: torch.nn.Module,
        stateful: Mapping[str, Any],
        **options: Unpack[SaverOptions],
    ) -> None:
        self._data = data
        super().__init__(db, run, model, stream=None if data is None else data.stream, **stateful, **options)

    def trained(self, stepped: bool, metrics: Mapping[str, Any] | None = None) -> None:
        """Call this when the trainer has trained on a batch.

        Args:
            stepped: Whether its optimizer has made a step. It has not if gradients are accumulated.
            metrics: Those of this step.
        """
        if self._data is not None:
            self._data.counter.trained()
        if stepped:
            self.step(**(metrics or {}))

    def start_at(self, step: int, skips: int = 0) -> None:
        """Call this in place of `restore()` when the trainer has restored a checkpoint of its own.

        Args:
            step: The last step of that checkpoint.
            skips: How many batches of its data the trainer will skip, and report by `skipped`.
        """
        self._start = step - skips
        self._core.begin_at(step)

    def skipped(self, batches: int) -> None:
        """Call this when the trainer has skipped batches of its data, and before it trains on the next one."""
        if self._data is not None:
            for _ in range(batches):
                self._data.counter.trained()

    def begin(self) -> None:
        """Call this when the trainer begins an iteration of its data."""
        if self._data is not None:
            self._data.counter.begin()

    def iterator_made(self) -> None:
        """Call this when the trainer has made the iterator of its data, which may have drawn random numbers."""
        self._restore_rng_again()

    def evaluated(self, metrics: Mapping[str, Any]) -> None:
        """Call this when the trainer has evaluated the model as it is after the last step."""
        if self.last_step:
            self._core.log(self.last_step, "valid", metrics)
            self._core.evaluated(metrics)

    def reported(self, metrics: Mapping[str, Any]) -> None:
        """Call this when the trainer has reported metrics of the training up to the last step."""
        if self.last_step:
            self._core.log(self.last_step, "train", metrics)
            self._core.evaluated(metrics)

    def _count(self, stream: Any) -> BatchCounter:
        assert self._data is not None
        return self._data.counter

    def _locate(self, stream: Any, batch_counter: BatchCounter) -> Position:
        assert self._data is not None
        return self._data.position


class TrainerData:
    """The data of a trainer, and its position there.

    Args:
        stream: A DataLoader over a QueryDataset, or the dataset itself.
        loader: If the trainer makes the loader itself, an object with its `num_workers` and `batch_size`.
    """

    def __init__(self, stream: Any, loader: Any = None) -> None:
        self.stream = stream
        self.counter = ManualBatchCounter()
        self.position = (
            position_of(stream, self.counter) if loader is None else DatasetPosition(stream, loader, self.counter)
        )

    def resume(self, db: TensorDB, run: str) -> None:
        """Set the data to the position of the newest checkpoint of the run. Call it before the trainer fetches data."""
        document = newest_set(db.warehouse, run)
        if document is not None and "stream" in document["_tdb"]["parts"]:
            wanted = [name for name in ("stream", "plans") if name in document["_tdb"]["parts"]]
            parts = load_parts(db.warehouse, document, wanted, "auto")
            self.position.load(parts["stream"], parts.get("plans", {}))
