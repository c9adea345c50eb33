"""Position: where in its data a loop is, as state that its stream can be put back to."""

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
    """State after the batches that the loop has received."""

    def state(self) -> dict[str, Any]:
        """Plain data."""
        ...

    def plans(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """What `state` refers to, to be saved with it."""
        ...

    def at_end(self) -> bool:
        """Whether the loop has received all of a finite iteration."""
        ...

    def load(self, state: Mapping[str, Any], plans: Mapping[str, Any]) -> None:
        """Puts the next iteration there. Changes nothing if it raises."""


def position_of(stream: Any, batch_counter: BatchCounter) -> Position:
    """The position of a DataLoader over a QueryDataset, a QueryDataset, or whatever has `state_dict` itself.

    Raises:
        CheckpointError: It is none of these.
    """
    if isinstance(stream, DataLoader) and isinstance(stream.dataset, QueryDataset):
        return OfDataset(stream.dataset, stream, batch_counter)
    if isinstance(stream, QueryDataset):
        return OfDataset(stream, SimpleNamespace(num_workers=0, batch_size=None), batch_counter)
    if callable(getattr(stream, "state_dict", None)) and callable(getattr(stream, "load_state_dict", None)):
        return _OfStream(stream)
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


class _OfStream:
    """A Stream, or a StatefulDataLoader: it knows what it has delivered."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def state(self) -> dict[str, Any]:
        return dict(self._stream.state_dict())

    def plans(self, state: Mapping[str, Any]) -> dict[str, Any]:
        return dict(self._stream.plans(state)) if isinstance(self._stream, (Stream, Mix)) else {}

    def at_end(self) -> bool:
        return False  # whether the loop begins another iteration is for the stream to know

    def load(self, state: Mapping[str, Any], plans: Mapping[str, Any]) -> None:
        if isinstance(self._stream, (Stream, Mix)):
            self._stream.load_state_dict(state, plans=plans)
        else:
            self._stream.load_state_dict(state)


class OfDataset:
    """A QueryDataset, perhaps behind workers that are ahead of the loop: its start state and the batches since."""

    def __init__(self, dataset: QueryDataset, loader: Any, batch_counter: BatchCounter) -> None:
        self._dataset = dataset
        self._loader = loader
        self._batch_counter = batch_counter
        self._first = dataset.state_dict()
        self._passes = dataset._stream.spec.passes
        self._resumed: dict[str, Any] | None = None
        batch_counter.before_iterate = self._next_iteration
        batch_counter.renew = self._begin_again

    def state(self) -> dict[str, Any]:
        return self._first if self.at_end() else self._reached()

    def at_end(self) -> bool:
        # Sample by sample, only the loader knows that it is the end: see _begin_again.
        reached = self._reached() if self._passes else {}
        return "pass" in reached and reached["pass"] - self._dataset.state_dict()["pass"] >= self._passes

    def _reached(self) -> dict[str, Any]:
        return self._dataset.advance(self._dataset.state_dict(), self._batch_counter.in_iteration, self._loader)

    def plans(self, state: Mapping[str, Any]) -> dict[str, Any]:
        return self._dataset.plans(state)

    def load(self, state: Mapping[str, Any], plans: Mapping[str, Any]) -> None:
        self._dataset.load_state_dict(state, plans=plans)
        self._resumed = self._dataset.state_dict()
        self._batch_counter.in_iteration = 0

    def _next_iteration(self) -> None:
        # Each iteration begins at the start state. The resumed position is that of the first one only; those after it
        # begin where they would have begun without the interruption, unless set_epoch has said otherwise.
        if self._resumed is None:
            return
        if self._batch_counter.iterations > 0 and self._dataset.state_dict() == self._resumed:
            self._reset()

    def _begin_again(self) -> bool:
        # Nothing was left to deliver after the resumed position.
        if self._resumed is None or self._dataset.state_dict() != self._resumed or not self._passes:
            return False
        self._reset()
        return True

    def _reset(self) -> None:
        self._dataset.load_state_dict(self._first)
        self._resumed = None
