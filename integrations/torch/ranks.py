"""Ranks: the processes of a distributed training, which save one set together and restore the same one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from bson import ObjectId

from tensordb_data.checkpoint import rng
from tensordb_data.checkpoint.checkpointer import Checkpointer
from tensordb_data.common.process_group import Collective
from tensordb_data.errors import CheckpointError
from tensordb_data.params.load import load_parts
from tensordb_data.tensors.packed import pack, unpack


def ranks() -> Ranks | None:
    """The processes of this training; None if this is the only one. All processes must call it."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    return Ranks()


class Ranks:
    """Agreement between the processes; see `Collective`.

    Attributes:
        rank: Of this process; 0 stores.
    """

    def __init__(self) -> None:
        self._collective = Collective()
        self.rank = self._collective.rank

    def agree(self, due: bool, signal: int) -> tuple[bool, int]:
        """See `checkpoint.checkpointer.Peers`."""
        said = torch.tensor([int(due), signal], dtype=torch.int32)
        dist.all_reduce(said, dist.ReduceOp.MAX, group=self._collective.group)
        return bool(said[0]), int(said[1])

    def gather(self, state: Mapping[str, Any]) -> list[Any]:
        """The states of all processes, in order."""
        return [unpack(data) for data in self._collective.all(pack(state))]

    def own(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The part of this process in `state["ranks"]`, which `gather` has made.

        If the number of processes has changed, process 0 gets the state of process 0. Each of the others keeps the
        state that it has, since no saved state belongs to it.
        """
        saved = state.get("ranks") or [state]
        if len(saved) == dist.get_world_size() or self.rank == 0:
            return dict(saved[self.rank])
        return rng.capture()

    def load(self, core: Checkpointer, step: int | None) -> tuple[Mapping[str, Any], dict[str, Any]] | None:
        """Call `core.load(step)` in process 0. Every process returns its result, or raises."""
        found, error = None, None
        if self.rank == 0:
            try:
                found = core.load(step)
            except Exception as caught:
                error = caught
        about = {"set": str(found[0]["_id"]) if found else None, "error": _say(error)}
        told = unpack(self._collective.all(pack(about))[0])
        if error is not None:
            raise error
        if told["error"] is not None:
            raise CheckpointError(f"Process 0 could not restore: {told['error']}")
        if told["set"] is None or found is not None:
            return found
        document: Mapping[str, Any] | None = core.warehouse.index["params"].find_one({"_id": ObjectId(told["set"])})
        if document is None:
            raise CheckpointError(f"Parameter set {told['set']}, which process 0 restored, is gone.")
        return document, load_parts(core.warehouse, document, None, "auto")


def _say(error: Exception | None) -> str | None:
    return None if error is None else f"{type(error).__name__}: {error}"
