"""Ranks: the processes of a distributed training, which save one set together and restore the same one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from bson import ObjectId

from tensordb_data.checkpoint import rng
from tensordb_data.checkpoint.checkpointer import Checkpointer
from tensordb_data.common.process_group import Collective
from tensordb_data.errors import CheckpointError
from tensordb_data.params.load import Divided
from tensordb_data.params.shared import Share
from tensordb_data.tensors.packed import pack, unpack
from tensordb_data.tensors.write import digest


def ranks() -> Ranks | None:
    """The processes of this training; None if this is the only one. All processes must call it."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    return Ranks()


class Ranks:
    """Agreement between the processes; see `Collective`.

    Attributes:
        rank: Of this process; 0 stores, or commits what all have stored.
        share: What this process stores of the state that was collected last; None if process 0 stores all of it.
    """

    def __init__(self) -> None:
        self._collective = Collective()
        self.rank = self._collective.rank
        self.share: Share | None = None

    def agree(self, due: bool, signal: int) -> tuple[bool, int]:
        """See `checkpoint.peers.Peers`."""
        said = torch.tensor([int(due), signal], dtype=torch.int32)
        dist.all_reduce(said, dist.ReduceOp.MAX, group=self._collective.group)
        return bool(said[0]), int(said[1])

    def gather(self, about: Mapping[str, Any]) -> list[Any]:
        """Small values of all processes, in order."""
        return [unpack(data) for data in self._collective.all(pack(about))]

    def meet(self, own_rng: Mapping[str, Any], names: Sequence[str] | None) -> list[Any]:
        """Agree on the save that is due next, if it will be stored by all processes.

        Args:
            own_rng: The random states of this process.
            names: The names of the tensors of the model, if each process stores its own part; None if not.

        Returns:
            The random states of all processes, in order.

        Raises:
            CheckpointError: The processes have tensors of other names: of parts of a model that are others' stages.
        """
        if names is None:
            return self.gather(own_rng)
        said = {"rng": own_rng, "set": str(ObjectId()), "names": digest(memoryview("\0".join(names).encode()))}
        told = self.gather(said)
        if other := [rank for rank, each in enumerate(told) if each["names"] != told[0]["names"]]:
            raise CheckpointError(
                f"process {other[0]} has parameters of other names than process 0: a model whose processes have "
                "different modules (pipeline stages) is saved stage by stage, each as a run of its own"
            )
        self.share = Share(ObjectId(told[0]["set"]), self.rank, len(told))
        return [each["rng"] for each in told]

    def own(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The part of this process in `state["ranks"]`, which `gather` has made.

        If the number of processes has changed, process 0 gets the state of process 0. Each of the others keeps the
        state that it has, since no saved state belongs to it.
        """
        saved = state.get("ranks") or [state]
        if len(saved) == dist.get_world_size() or self.rank == 0:
            return dict(saved[self.rank])
        return rng.capture()

    def load(
        self, core: Checkpointer, step: int | None, divided: Divided | None
    ) -> tuple[Mapping[str, Any], dict[str, Any]] | None:
        """Load the set that process 0 finds; see `Checkpointer.load`.

        Every process reads it for itself, of divided tensors its own part. If one of them cannot, all of them raise.
        """
        document: Mapping[str, Any] | None = None
        error: Exception | None = None
        if self.rank == 0:
            try:
                document = core.find(step)
            except Exception as caught:
                error = caught
        (told, *_) = self._told(error, set=str(document["_id"]) if document else None)
        if told["set"] is None:
            return None
        parts: dict[str, Any] = {}
        try:
            if document is None:
                document = core.warehouse.index["params"].find_one({"_id": ObjectId(told["set"])})
            if document is None:
                raise CheckpointError(f"Parameter set {told['set']}, which process 0 restores, is gone.")
            parts = core.read(document, divided)
        except Exception as caught:
            error = caught
        self._told(error)
        assert document is not None
        return document, parts

    def _told(self, error: Exception | None, **about: Any) -> list[Any]:
        """What all processes say. If one of them says an error, all of them raise."""
        told = self.gather({**about, "error": None if error is None else f"{type(error).__name__}: {error}"})
        if error is not None:
            raise error
        for rank, each in enumerate(told):
            if each["error"] is not None:
                raise CheckpointError(f"Process {rank} could not restore: {each['error']}")
        return told
