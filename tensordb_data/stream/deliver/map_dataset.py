"""MapDataset: the samples of a query by their number, for samplers and splits of other libraries."""

from __future__ import annotations

import operator
import os
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from tensordb_data.errors import NotFoundError, QueryError, SampleError
from tensordb_data.stream.deliver.row_loader import RowLoader
from tensordb_data.stream.fetch.failure_budget import FailureBudget
from tensordb_data.stream.passes.planner import Planner
from tensordb_data.stream.spec import StreamSpec
from tensordb_data.stream.state import State
from tensordb_data.stream.stats import Clock, Stats
from tensordb_data.stream.transform.apply import library_in, open_transform
from tensordb_data.stream.transform.collate import Batch, slice_batch

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_PYTHON = (np.dtype(np.int64), np.dtype(np.float64), np.dtype(np.bool_))
"""The dtypes of Python's own numbers."""


class MapDataset:
    """The samples that match a query, by their number, in the order of the query. `Selection.dataset` makes one.

    `dataset[3]` is a sample, a dict of its fields; `dataset[[1, 5, 9]]` and `dataset[2:8]` are columns, as a batch of a
    stream has them. Several samples at once are much faster than one by one. Samplers and loaders that know
    `__getitems__` ask for several.

    The dataset goes over the samples that match when it is made, or when `refresh` is called, with their values of that
    time. A copy that is pickled goes over the same ones. It holds about 32 bytes a sample, and its pickle next to
    nothing. In each rank of a distributed run the dataset is made anew: the data must not change meanwhile.

    A transform, and a `Clip` or `Window` at a random place, gets its random numbers from a key that Python's module
    `random` draws, since the number of a sample says nothing about the epoch. A DataLoader seeds this module in each of
    its workers.

    Args:
        warehouse: Where the samples are.
        spec: The query, fields and transform.

    Raises:
        NotFoundError: The query names no dataset that exists.
        QueryError: There is no such field, or the transform would see none of the fields.
    """

    def __init__(self, warehouse: Warehouse, spec: StreamSpec) -> None:
        self._warehouse, self._spec = warehouse, spec
        self._planner = Planner(warehouse, spec)
        self._data: State = self._planner.agree_on_state()
        library = library_in(spec)
        if library is not None:
            layout = self._planner.plan(self._data).table.layout
            library.targets(layout.delivered(spec.views, spec.fields))
        self._opened: tuple[int, RowLoader] | None = None

    @property
    def _loader(self) -> RowLoader:
        """What reads samples in this process: after a fork, the connections of the parent are not its own."""
        if self._opened is None or self._opened[0] != os.getpid():
            stats = Stats(1)
            transform = open_transform(self._spec)
            loader = RowLoader(self._warehouse, self._spec, transform, FailureBudget(0, stats), stats)
            self._opened = os.getpid(), loader
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {
            "warehouse": self._warehouse,
            "spec": self._spec,
            "data": self._data,
            "planner": self._planner.agreement(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._warehouse, self._spec, self._data = state["warehouse"], state["spec"], state["data"]
        self._planner = Planner(self._warehouse, self._spec)
        self._planner.join(state["planner"])
        self._opened = None

    def __repr__(self) -> str:
        return f"MapDataset({self._spec.query!r}, {len(self)} samples)"

    def __len__(self) -> int:
        return self._data.n or 0

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: Sequence[int] | slice | NDArray[np.integer[Any]]) -> Batch: ...

    def __getitem__(self, index: Any) -> Any:
        """A sample, or columns [m, ...] of m samples.

        Args:
            index: A number, which may count from the end; or several, or a slice.

        Raises:
            IndexError: There are not so many samples.
            NotFoundError: A sample was deleted since.
            SampleError: A sample cannot be read, decoded or transformed.
        """
        if isinstance(index, slice):
            return self.columns(range(len(self))[index])
        try:
            number = operator.index(index)
        except TypeError:
            return self.columns(index)
        return self.__getitems__([number])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several samples, as a list of dicts; see `__getitem__`."""
        columns = self.columns(indices)
        return [{name: _item(column[row]) for name, column in columns.items()} for row in range(len(indices))]

    def columns(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> Batch:
        """Several samples, as a dict of columns [m, ...]; see `__getitem__`."""
        rows = self._rows(indices)
        if not len(rows):
            return {}
        plan = self._planner.plan(self._data)
        table = plan.table.take(rows)
        keys = [random.getrandbits(64) for _ in range(len(rows))] if self._spec.draws else []
        (found,) = self._loader.load(table, keys, [len(rows)], plan.versions, Clock())
        if isinstance(found, SampleError):
            raise found
        if len(found) < len(rows):
            gone = int(np.setdiff1d(np.arange(len(rows)), found.kept)[0])
            raise NotFoundError(
                f"{table.name(gone)}, number {rows[gone]} of this dataset, was deleted since the dataset was made;"
                " refresh() takes the samples of now"
            )
        return slice_batch(found.columns, 0, len(found), self._spec.ragged, found.name)

    def _rows(self, indices: Any) -> NDArray[np.int64]:
        rows = np.asarray(indices)
        if not rows.size:
            return np.zeros(0, np.int64)
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise QueryError(
                f"expected the number of a sample, or a list of numbers, or a slice. Found: {indices!r:.80}"
            )
        rows = rows.astype(np.int64)
        if (wrong := rows[(rows < -len(self)) | (rows >= len(self))]).size:
            raise IndexError(f"number {wrong[0]} of a dataset of {len(self)} samples")
        return np.where(rows < 0, rows + len(self), rows)

    def refresh(self) -> None:
        """Go over the samples that match now. Copies in other processes stay as they are."""
        self._data = self._planner.agree_on_state()
        self._opened = None


def _item(value: Any) -> Any:
    """Python numbers where they are of the same dtype, as collation of a loader expects them."""
    return value.item() if isinstance(value, np.generic) and value.dtype in _PYTHON else value
