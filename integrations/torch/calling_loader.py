"""Who has called a dataset, and what will become of its items.

A plain DataLoader hides its options from its dataset, and so do the libraries that wrap one. Four things matter here:

- Whether the loader collates. Batches that the dataset has made would be batched twice, and the loop would see it late.
- Whether the loader pins. It copies each batch in the thread of the loop, while the threads of the stream could do it.
- Which Trainer of Hugging Face calls a callback, and whether it goes on from a checkpoint of its own. It hands its
  state to callbacks, and neither itself nor what it was told.
- Whether Accelerate, or the Trainer of Hugging Face, divides the items among the ranks. They take them for those of all
  ranks. A dataset that has divided them already would lose half of its samples, without a word.

All of it is known to the objects that call the dataset, and to nothing that the dataset can ask: Accelerate has no
option by which a dataset says that it is divided. So this module, and no other, reads the frames of its callers. It
compares the names of classes, and imports no library that may be missing. A subclass of DataLoader could hand over its
options, but then the plain DataLoader, which users and other libraries make, would be slower and unchecked. If these
internals change, a test fails.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset, default_collate
from torch.utils.data.dataloader import _BaseDataLoaderIter

from tensordb_data.errors import LengthError, QueryError, UnsupportedError
from tensordb_data.stream.ranks import Divider
from tensordb_data.stream.spec import StreamSpec
from tensordb_data.stream.tokens import Tokens

_FRAMES = 4
"""The iterator of the loader is among so many callers of `iter(dataset)`."""
_DEPTH = 4
"""A dataset is within so many wrappers."""
_PARTS = 1000
"""A collection of more is no collection of datasets."""


@dataclass(frozen=True)
class CallingLoader:
    """The options of the loader; all are False if no loader is found."""

    collates: bool
    """Whether it collates items to batches."""
    pins: bool
    """Whether it copies its items to pinned memory."""
    plainly: bool
    """Whether it collates by PyTorch's own function."""


@dataclass(frozen=True)
class Division:
    """How something above a loader divides its batches, or the items of its dataset, among the ranks."""

    divider: Divider
    batches: int = 1
    """How many batches of the loader become one batch on each rank."""
    batch_size: int | None = None
    """How many items of the dataset become one batch on each rank, if items are divided; 0 if that is not known."""

    def check(self, by_sample: bool, tokens: Tokens | None) -> None:
        """Raise if the items of the dataset cannot be divided.

        Args:
            by_sample: Whether the dataset yields samples.
            tokens: How it makes batches of sequences, if it does.

        Raises:
            QueryError: They are batches, or samples that nobody would batch; or batches whose fields differ in length.
        """
        if tokens is not None:
            option = "batch_tokens" if tokens.pack is None else "pack"
            raise QueryError(
                f"{self.divider.name} joins batches and cuts all of their fields alike, and those of `{option}` differ"
                " in length: make the loader with tensordb_data.torch.accelerate.prepare(accelerator, loader), in which"
                " each rank reads its own batches"
            )
        if self.batch_size is not None and not (by_sample and self.batch_size):
            raise QueryError(
                f"{self.divider.name} divides single samples, and makes batches of them: leave"
                " dispatch_batches=False out, or give batch_size to the DataLoader and not to the QueryDataset, or make"
                " the loader with tensordb_data.torch.accelerate.prepare(accelerator, loader), which needs no division"
            )

    def warn(self) -> None:
        """Say that this is slower than a dataset that divides itself."""
        who = "each rank" if self.divider.everywhere else "rank 0"
        warnings.warn(
            f"{self.divider.name} divides the samples among the ranks: {who} reads all of them. To let each rank read"
            " its own, make the loader with tensordb_data.torch.accelerate.prepare(accelerator, loader)",
            stacklevel=3,
        )


def calling_loader() -> CallingLoader:
    """Find the loader that has called `__iter__` of a dataset. Only this `__iter__` may call it."""
    frame = sys._getframe(2)  # the fetcher, which has called `iter(dataset)`
    collates = frame.f_locals.get("auto_collation") is True
    plainly = collates and frame.f_locals.get("collate_fn") is default_collate
    caller = frame
    for _ in range(_FRAMES):
        if isinstance(iterator := caller.f_locals.get("self"), _BaseDataLoaderIter):
            return CallingLoader(collates, bool(getattr(iterator, "_pin_memory", False)), plainly)
        if caller.f_back is None:
            break
        caller = caller.f_back
    return CallingLoader(collates, False, plainly)


def division(loader: Any = None) -> Division | None:
    """Find what divides among the ranks what a dataset delivers to its callers, or to `loader`."""
    for one in ([] if loader is None else [loader]) or _callers():
        names = _names(one)
        if "DataLoaderDispatcher" in names:
            alone = one.split_batches or getattr(one, "submesh_tp", None) is not None
            divider = Divider("DataLoaderDispatcher of Accelerate", False)
            return Division(divider, 1 if alone else one.state.num_processes)
        loads = names & {"DataLoader", "DataLoaderAdapter", "_BaseDataLoaderIter"}
        for shard in [one, *(getattr(one, name, None) for name in ("dataset", "_dataset") if loads)]:
            if "IterableDatasetShard" in _names(shard):
                each = 1 if getattr(shard, "split_batches", False) else shard.num_processes
                whose = "Accelerate" if "accelerate" in type(shard).__module__ else "Hugging Face's Trainer"
                name = f"IterableDatasetShard of {whose} (dispatch_batches=False)"
                return Division(Divider(name, True), batch_size=each * (shard.batch_size or 0))
    return None


@dataclass(frozen=True)
class CallingTrainer:
    """A Trainer of Hugging Face that begins to train."""

    trainer: Any
    """None if none is found."""
    resumes: bool
    """Whether it was told to go on from a checkpoint of its own."""
    skips: int
    """How many batches of its data it skips, since that checkpoint has seen them."""


def calling_trainer() -> CallingTrainer:
    """Find the Trainer that has called `on_train_begin` of a callback."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        names = frame.f_locals
        if "steps_trained_in_current_epoch" in names and hasattr(names.get("self"), "callback_handler"):
            resumes = bool(names.get("resume_from_checkpoint"))
            return CallingTrainer(names["self"], resumes, names["steps_trained_in_current_epoch"] if resumes else 0)
        frame = frame.f_back
    return CallingTrainer(None, False, 0)


def starting_workers() -> _BaseDataLoaderIter | None:
    """Find the iterator of a loader that is starting its workers."""
    for one in _callers():
        if isinstance(one, _BaseDataLoaderIter) and one._num_workers > 0:
            return one
    return None


def measured_loader(dataset: Dataset[Any]) -> DataLoader[Any] | None:
    """Find the loader over `dataset` whose length is asked for. Only `__len__` of the dataset may call it."""
    loaders = (one for one in _callers() if isinstance(one, DataLoader))
    return next((one for one in loaders if is_within(dataset, one.dataset)), None)


def is_within(dataset: Dataset[Any], wrapper: Any, depth: int = _DEPTH) -> bool:
    """Whether `wrapper` is a dataset, or keeps it in an attribute, also in a collection or in another wrapper."""
    if wrapper is dataset:
        return True
    if depth == 0 or not isinstance(wrapper, (Dataset, list, tuple, dict)):
        return False
    if isinstance(wrapper, Dataset):
        wrapper = vars(wrapper)
    inner: Collection[Any] = wrapper.values() if isinstance(wrapper, dict) else wrapper
    return len(inner) <= _PARTS and any(is_within(dataset, one, depth - 1) for one in inner)


def _callers() -> Iterator[Any]:
    """The objects whose methods are running in this thread, the last called first."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_varnames[:1] == ("self",):
            yield frame.f_locals.get("self")
        frame = frame.f_back  # type: ignore[assignment]


def _names(one: Any) -> set[str]:
    """The names of the classes of an object. Accelerate's loaders deny their own."""
    return {kind.__name__ for kind in type(one).__mro__}


def no_end() -> LengthError:
    """There is no length."""
    return LengthError(
        "a QueryDataset without `passes` has no end, and no length. With passes=1 it ends after each pass; or give the"
        " loop, or the trainer, a number of steps. For samples by their numbers (random_split, samplers), there is"
        " tensordb_data.torch.MapDataset"
    )


def no_numbers() -> UnsupportedError:
    """A sample is asked for by its number."""
    return UnsupportedError(
        "the samples of a QueryDataset come in its own order (shuffle=True), and have no numbers: for random_split,"
        " Subset and samplers, use tensordb_data.torch.MapDataset(selection)"
    )


def twice(spec: StreamSpec) -> str:
    """Why a DataLoader must not make batches of batches."""
    made = f"of {spec.batch_size}" if spec.tokens is None or spec.tokens.n is None else f"of {spec.tokens.n} tokens"
    if spec.tokens is not None and spec.tokens.pack is not None:
        made = f"of {spec.batch_size} rows"
    return (
        f"these samples would be batched twice: the dataset makes batches {made} already. Give the DataLoader"
        " batch_size=None, or make the QueryDataset without batch_size"
    )
