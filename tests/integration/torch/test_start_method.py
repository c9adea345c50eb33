"""Workers that a forkserver starts by default, as from Python 3.14 on."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from typing import Any

import pytest
from torch.utils.data import DataLoader

from tensordb_data.api.selection import Selection
from tensordb_data.errors import QueryError
from tensordb_data.torch import QueryDataset
from tests.transforms import plain


@pytest.fixture
def _forkserver() -> Iterator[None]:
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("forkserver", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.usefixtures("_forkserver")
def test_functions_of_modules_are_sent_and_others_refused(sel: Selection[Any]) -> None:
    def loader(**options: Any) -> DataLoader[Any]:
        dataset = QueryDataset(sel, batch_size=50, **options)
        return DataLoader(dataset, batch_size=None, num_workers=1)

    for transform in (plain, "tests.transforms:plain"):
        batches = list(loader(transform=transform, passes=1))
        assert [label for batch in batches for label in batch["label"].tolist()] == [*range(301)]
        assert {tuple(batch) for batch in batches} == {("label",)}
    for option in ("transform", "weights"):
        with pytest.raises(QueryError, match=f"`{option}` cannot be sent to a worker process"):
            iter(loader(**{option: lambda value: 1.0}))
