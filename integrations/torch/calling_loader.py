"""What the DataLoader that iterates over a dataset will do with the items.

A plain DataLoader hides its options from its dataset. Two of them matter here. If the loader collates the batches that
the dataset has made, every batch is wrong, and the loop would see it late or never. If the loader pins its items, it
copies each batch in the thread of the loop, while the threads of the stream could have put it into pinned memory.

Both are known to the objects of PyTorch that call `iter(dataset)`, and to nothing that the dataset can ask. So this
module, and no other, reads the frames of its callers. A subclass of DataLoader could hand over its options, but then
the plain DataLoader, which users and other libraries make, would be slower and unchecked. If PyTorch changes these
internals, a test fails, and until then nothing is found here: the loader itself pins, and no batch is refused.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from torch.utils.data.dataloader import _BaseDataLoaderIter

_FRAMES = 4
"""The iterator of the loader is among so many callers of `iter(dataset)`."""


@dataclass(frozen=True)
class CallingLoader:
    """The options of the loader; both are False if no loader is found."""

    collates: bool
    """Whether it collates items to batches."""
    pins: bool
    """Whether it copies its items to pinned memory."""


def calling_loader() -> CallingLoader:
    """Find the loader that has called `__iter__` of a dataset. Only this `__iter__` may call it."""
    frame = sys._getframe(2)  # the fetcher, which has called `iter(dataset)`
    collates = frame.f_locals.get("auto_collation") is True
    caller = frame
    for _ in range(_FRAMES):
        if isinstance(iterator := caller.f_locals.get("self"), _BaseDataLoaderIter):
            return CallingLoader(collates, bool(getattr(iterator, "_pin_memory", False)))
        if caller.f_back is None:
            break
        caller = caller.f_back
    return CallingLoader(collates, False)
