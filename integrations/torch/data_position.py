"""The position of a training loop in its data, as a state that its stream can be set to."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Protocol

from torch.utils.data import DataLoader

from tensordb_data.checkpoint.batch_counter import BatchCounter
from tensordb_data.errors import CheckpointError
from tensordb_data.stream.deliver.stream import Stream
from tensordb_data.stream.mixture.mixture import Mix
from tensordb_data.torch.dataset import QueryDataset


class Position(Protocol):
    """The position of a loop: after the batches that it has received."""

    def state(self) -> dict[str, Any]:
        """The state, as JSON."""
        ...

    def plans(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The plans that `state` refers to, to be saved with it."""
        ...

    def at_end(self) -> bool:
        """Whether the loop has received all batches of a finite iteration."""
        ...

    def world_size(self) -> int | None:
        """How many ranks share the stream; None if that is not known."""
        ...

    def load(self, state: Mapping[str, Any], plans: Mapping[str, Any]) -> None:
        """Set the start of the next iteration. Changes nothing if it raises."""


def position_of(stream: Any, batch_counter: BatchCounter) -> Position:
    """Make the position of a DataLoader over a QueryDataset, of a QueryDataset, or of an object with `state_dict`.

    Raises:
        CheckpointError: The object is none of these.
    """
    if isinstance(stream, DataLoader):
        dataset: Any = stream.dataset
        if type(dataset).__name__ == "IterableDatasetShard":  # of Accelerate
            dataset = dataset.dataset
        if isinstance(dataset, QueryDataset):
            return DatasetPosition(dataset, stream, batch_counter)
    if isinstance(stream, QueryDataset):
        return DatasetPosition(stream, SimpleNamespace(num_workers=0, batch_size=None), batch_counter)
    if callable(getattr(stream, "state_dict", None)) and callable(getattr(stream, "load_state_dict", None)):
        return _StreamPosition(stream)
    found = (
        f"a DataLoader over a {type(stream.dataset).__name__}"
        if isinstance(stream, DataLoader)
        else f"a {type(stream).__name__}"
    )
    raise CheckpointError(
        "stream= is what the loop iterates: a DataLoader over a QueryDataset, a Stream, or a "
        "torchdata StatefulDataLoader. "
        f"Found {found}, which cannot say where it stands."
    )


class _StreamPosition:
    """The position of a Stream or a StatefulDataLoader, which itself knows what it has delivered."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def state(self) -> dict[str, Any]:
        return dict(self._stream.state_dict())

    def plans(self, state: Mapping[str, Any]) -> dict[str, Any]:
        return dict(self._stream.plans(state)) if isinstance(self._stream, (Stream, Mix)) else {}

    def at_end(self) -> bool:
        return False  # the stream itself knows where its next iteration begins

    def world_size(self) -> int | None:
        return self._stream.spec.world_size if isinstance(self._stream, (Stream, Mix)) else None

    def load(self, state: Mapping[str, Any], plans: Mapping[str, Any]) -> None:
        if isinstance(self._stream, (Stream, Mix)):
            self._stream.load_state_dict(state, plans=plans)
        else:
            self._stream.load_state_dict(state)


class DatasetPosition:
    """The position of a QueryDataset: its start state, and the number of batches since.

    Workers may have fetched more batches than the loop has received.
    """

    def __init__(self, dataset: QueryDataset, loader: Any, batch_counter: BatchCounter) -> None:
        self._dataset = dataset
        self._loader = loader
        self._batch_counter = batch_counter
        self._first = dataset.state_dict()
        self._passes = dataset._stream.spec.passes
        self._counts_epochs = hasattr(loader, "iteration")
        self._resumed: dict[str, Any] | None = None
        batch_counter.before_iterate = self._next_iteration
        batch_counter.renew = self._begin_again

    def state(self) -> dict[str, Any]:
        # Where the user counts epochs, an iteration begins where he says. Loaders of Accelerate count them themselves.
        return self._first if self.at_end() and not self._counts_epochs else self._reached()

    def at_end(self) -> bool:
        # In sample-wise mode, only the loader knows that it is the end; see _begin_again.
        reached = self._reached() if self._passes else {}
        return "pass" in reached and reached["pass"] - self._dataset.state_dict()["pass"] >= self._passes

    def world_size(self) -> int | None:
        return self._dataset._stream.spec.world_size

    def _reached(self) -> dict[str, Any]:
        return self._dataset.advance(self._dataset.state_dict(), self._batch_counter.in_iteration, self._loader)

    def plans(self, state: Mapping[str, Any]) -> dict[str, Any]:
        return self._dataset.plans(state)

    def load(self, state: Mapping[str, Any], plans: Mapping[str, Any]) -> None:
        self._dataset.load_state_dict(state, plans=plans)
        self._resumed = self._dataset.state_dict()
        self._batch_counter.in_iteration = 0
        if self._passes and self._counts_epochs:  # it goes on from here
            stream = self._resumed.get("stream", self._resumed)
            self._loader.iteration = stream["pass"] // self._passes

    def _next_iteration(self) -> None:
        # Each iteration begins at the start state. But the resumed position is for the first iteration only. The later
        # ones begin where they would have begun without the interruption, unless set_epoch was called.
        if self._resumed is None:
            return
        if self._batch_counter.iterations > 0 and self._dataset.state_dict() == self._resumed:
            self._reset()

    def _begin_again(self) -> bool:
        # Called when no batch was left after the resumed position.
        if self._resumed is None or self._dataset.state_dict() != self._resumed or not self._passes:
            return False
        self._reset()
        return True

    def _reset(self) -> None:
        self._dataset.load_state_dict(self._first)
        self._resumed = None
