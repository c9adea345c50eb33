"""Accelerate: a loader in which each rank reads its own samples, and no others."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from tensordb_data.errors import MissingExtraError, QueryError
from tensordb_data.torch.dataset import QueryDataset
from tensordb_data.torch.loggers.accelerate import RunTracker

try:
    from accelerate import Accelerator
    from accelerate.data_loader import DataLoaderShard
except ImportError as error:
    raise MissingExtraError("tensordb_data.torch.accelerate needs Accelerate: pip install accelerate") from error

__all__ = ["RunTracker", "prepare"]

_KEPT = (
    "batch_size", "collate_fn", "drop_last", "generator", "in_order", "multiprocessing_context", "num_workers",
    "persistent_workers", "pin_memory", "prefetch_factor", "timeout", "worker_init_fn",
)  # fmt: skip


def prepare(accelerator: Accelerator, loader: DataLoader[Any]) -> DataLoader[Any]:
    """Prepare a loader over a QueryDataset, which divides its samples among the ranks itself.

    `accelerator.prepare(loader)` takes what a dataset delivers for the samples of all ranks: one rank reads them and
    sends them to the others, or each rank reads all of them and keeps its part. Here, each rank reads its own part.
    Batches come on the accelerator's device, and gradient accumulation knows the end of the data, as with
    `accelerator.prepare`.

    Args:
        accelerator: The Accelerator of this process.
        loader: A DataLoader over a QueryDataset, in either mode.

    Returns:
        A loader that the accelerator knows, and that `accelerator.prepare` returns as it is.

    Raises:
        QueryError: It is no DataLoader over a QueryDataset, or one that is prepared already.
    """
    if not isinstance(loader, DataLoader) or not isinstance(loader.dataset, QueryDataset):
        raise QueryError(
            f"prepare() takes a DataLoader over a QueryDataset. Found: {type(loader).__name__}"
            f"{' over a ' + type(loader.dataset).__name__ if isinstance(loader, DataLoader) else ''}. For other loaders"
            " there is accelerator.prepare()"
        )
    if getattr(loader, "_is_accelerate_prepared", False):
        raise QueryError("the loader is prepared already: give prepare() the DataLoader itself")
    options = {name: getattr(loader, name) for name in _KEPT}
    device = accelerator.device if accelerator.device_placement else None
    prepared: Any = DataLoaderShard(loader.dataset, device=device, _drop_last=loader.drop_last, **options)
    prepared._is_accelerate_prepared = True
    found: DataLoader[Any] = accelerator.prepare(prepared)
    return found
