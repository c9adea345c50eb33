"""The position of a training loop in its data, as a state that its stream can be set to."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Protocol

from torch.utils.data import DataLoader

from tensordb_data.checkpoint.batch_counter import BatchCounter, ManualBatchCounter
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
    """The position of a QueryDataset: the start of its newest iteration, and the number of batches since.

    Workers may have fetched more batches than the loop has received.
    """

    def __init__(self, dataset: QueryDataset, loader: Any, batch_counter: BatchCounter) -> None:
        self._dataset = dataset
        self._loader = loader
        self._batch_counter = batch_counter
        self._first = dataset.state_dict()
        self._passes = dataset._stream.spec.passes
        self._counts_epochs = hasattr(loader, "iteration")
        self._told = isinstance(batch_counter, ManualBatchCounter)
        self._loaded: dict[str, Any] | None = None
        self._resumed: dict[str, Any] | None = None  # the same, as the dataset has it
        self._next: dict[str, Any] | None = None  # where the newest iteration began
        batch_counter.before_iterate = self._next_iteration
        batch_counter.renew = self._begin_again

    def state(self) -> dict[str, Any]:
        if self._next is not None and not self._batch_counter.in_iteration:
            return self._next  # workers that have not begun yet do not say where
        return self._reached()

    def at_end(self) -> bool:
        # In sample-wise mode, only the loader knows that it is the end; see _begin_again.
        reached = self._reached() if self._passes else {}
        start = self._dataset.state_dict()
        return "pass" in reached and reached["pass"] // self._passes > start["pass"] // self._passes

    def world_size(self) -> int | None:
        return self._dataset._stream.spec.world_size

    def _reached(self) -> dict[str, Any]:
        return self._dataset.advance(self._dataset.state_dict(), self._batch_counter.in_iteration, self._loader)

    def plans(self, state: Mapping[str, Any]) -> dict[str, Any]:
        return self._dataset.plans(state)

    def load(self, state: Mapping[str, Any], plans: Mapping[str, Any]) -> None:
        if self._told and self._loaded == state and self._dataset.state_dict() == self._resumed:
            return  # set before the trainer made its iterator, which has begun there
        self._dataset.load_state_dict(state, plans=plans)
        self._loaded, self._resumed = dict(state), self._dataset.state_dict()
        self._batch_counter.in_iteration, self._next = 0, None
        if self._passes and self._counts_epochs:  # it goes on from here
            stream = self._resumed.get("stream", self._resumed)
            self._loader.iteration = stream["pass"] // self._passes

    def _next_iteration(self) -> None:
        # A trainer may have made its first iterator before it tells.
        first = self._told and not self._batch_counter.iterations
        self._next = self._dataset.state_dict() if first else self._dataset._next_state()
        # Without end, each iteration begins at the start state. But the resumed position is for the first iteration
        # only. The later ones begin where they would have begun without the interruption, unless set_epoch was called.
        if self._resumed is None or self._passes:
            return
        if self._batch_counter.iterations > 0 and self._dataset.state_dict() == self._resumed:
            self._dataset.load_state_dict(self._first)
            self._resumed, self._next = None, self._first

    def _begin_again(self) -> bool:
        # Called when no batch was left after the resumed position. With several passes, it is the last iteration's end.
        if self._resumed is None or self._dataset.state_dict() != self._resumed or not self._passes:
            return False
        self._resumed, self._next = None, self._dataset._next_state()
        return True
