"""Driven: a StepCheckpointer within somebody else's training loop, which says what it has trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from tensordb_data.checkpoint.batch_counter import Deliveries, Told
from tensordb_data.checkpoint.checkpointer import newest_set
from tensordb_data.checkpoint.options import Every, SaveOptions
from tensordb_data.params.load import load_parts
from tensordb_data.params.retention import Keep
from tensordb_data.torch.data_position import OfDataset, Position, position_of
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


class Driven(StepCheckpointer):
    """See StepCheckpointer.

    Args:
        db: The warehouse.
        run: Name of the run.
        data: Where the trainer is in its data; None if that is not to be saved.
        stateful: The trainer's optimizer, scheduler and scaler, by these names.
        options: Of StepCheckpointer.
    """

    def __init__(
        self,
        db: TensorDB,
        run: str,
        data: Data | None,
        model: torch.nn.Module,
        stateful: Mapping[str, Any],
        **options: Unpack[SaverOptions],
    ) -> None:
        self._data = data
        super().__init__(db, run, model, stream=None if data is None else data.stream, **stateful, **options)

    def trained(self, stepped: bool) -> None:
        """The trainer has trained on a batch, and its optimizer has made a step or has not (it accumulates)."""
        if self._data is not None:
            self._data.told.trained()
        if stepped:
            self.step()

    def begin(self) -> None:
        """The trainer begins an iteration of its data."""
        if self._data is not None:
            self._data.told.begin()

    def settle(self) -> None:
        """The iterator of the data has been made, and may have drawn from torch's generator."""
        self._settle_rng()

    def evaluated(self, metrics: Mapping[str, Any]) -> None:
        """The trainer has evaluated the model as it is after its last step."""
        plain = {name.replace(".", "_"): value for name, value in metrics.items()}
        if self.last_step:
            self._core.log(self.last_step, "valid", plain)
            self._core.evaluated(plain)

    def _count(self, stream: Any) -> Deliveries:
        assert self._data is not None
        return self._data.told

    def _locate(self, stream: Any, deliveries: Deliveries) -> Position:
        assert self._data is not None
        return self._data.position


class Data:
    """Where a trainer is in its data.

    Args:
        stream: A DataLoader over a QueryDataset, or the dataset itself.
        loader: What the trainer makes of a dataset: something with `num_workers` and `batch_size`.
    """

    def __init__(self, stream: Any, loader: Any = None) -> None:
        self.stream = stream
        self.told = Told()
        self.position = position_of(stream, self.told) if loader is None else OfDataset(stream, loader, self.told)

    def resume(self, db: TensorDB, run: str) -> None:
        """Puts the data where the newest set of the run was, before the trainer begins to fetch."""
        document = newest_set(db.warehouse, run)
        if document is not None and "stream" in document["_tdb"]["parts"]:
            wanted = [name for name in ("stream", "plans") if name in document["_tdb"]["parts"]]
            parts = load_parts(db.warehouse, document, wanted, "auto")
            self.position.load(parts["stream"], parts.get("plans", {}))
