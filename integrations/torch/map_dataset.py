"""MapDataset: the samples of a query by their number, as tensors, for samplers, `random_split` and `DataLoader`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from tensordb_data.api.selection import Selection
from tensordb_data.schema import BlobField
from tensordb_data.schema.views.view import View
from tensordb_data.torch.convert import to_samples, to_tensors


class MapDataset(Dataset[dict[str, Any]]):
    """`Selection.dataset` with tensors.

    For `DataLoader(MapDataset(sel), batch_size=64, shuffle=True)`, samplers and `random_split`. The loader asks for the
    samples of a batch at once. Still faster: `sampler=BatchSampler(...)` with `batch_size=None` gets whole columns, and
    collates nothing. A `QueryDataset` is faster than either where the order of the samples is for it to choose.

    Args:
        selection: Of samples.
        fields: The fields; None for the required ones.
        transform: Called for each sample, as in `Selection.stream`. Its random numbers are another thing in each epoch.
        decode: How fields are decoded, as in `Selection.stream`.

    Raises:
        NotFoundError: The query names no dataset that exists.
        QueryError: There is no such field, or the transform would see none of the fields.
    """

    def __init__(
        self,
        selection: Selection[Any],
        fields: Sequence[str] | None = None,
        *,
        transform: Callable[..., Any] | str | None = None,
        decode: Mapping[str, bool | View | BlobField] | None = None,
    ) -> None:
        self._dataset = selection.dataset(fields, transform=transform, decode=decode)

    def __repr__(self) -> str:
        return f"tensordb_data.torch.{self._dataset!r}"

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int | slice | Sequence[int] | NDArray[np.integer[Any]]) -> dict[str, Any]:
        """A sample, or columns [m, ...] of m samples; see `tensordb_data.MapDataset`."""
        if isinstance(index, slice):
            return to_tensors(self._dataset[index])
        if np.ndim(index):
            return to_tensors(self._dataset.columns(index))  # type: ignore[arg-type]
        return self.__getitems__([index])[0]  # type: ignore[list-item]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several samples, as a list of dicts."""
        return list(to_samples(to_tensors(self._dataset.columns(indices))))

    def refresh(self) -> None:
        """Go over the samples that match now. Workers that run already go on with the old ones."""
        self._dataset.refresh()
