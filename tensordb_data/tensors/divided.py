"""Tensors of torch that several processes hold together: DTensor, as FSDP2 and tensor parallelism make them.

torch is never imported here: if there is a DTensor, the caller has imported it.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

from tensordb_data.errors import CheckpointError
from tensordb_data.tensors.pieces import Box, LocalPiece, divided_box


def is_divided(value: Any) -> bool:
    """Whether a value is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def box_of(tensor: Any) -> Box:
    """Which part of a DTensor this process has.

    Raises:
        CheckpointError: It is divided in a way of which that cannot be told.
    """
    whole, mesh = tuple(tensor.shape), tensor.device_mesh
    local = tuple(tensor.to_local().shape)
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return Box((0,) * len(whole), (0,) * len(whole))
    dims: list[tuple[int, bool] | None] = []
    for placement in tensor.placements:
        kind = type(placement).__name__
        if kind not in ("Shard", "_StridedShard", "Replicate"):
            raise CheckpointError(f"a tensor with the placement {placement} has no values of its own to be saved")
        dims.append(None if kind == "Replicate" else (placement.dim, kind == "_StridedShard"))
    box = divided_box(whole, tuple(mesh.shape), coordinate, dims)
    if box.shape != local and box.size + tensor.to_local().numel():
        raise CheckpointError(
            f"a tensor of shape {whole} with the placements {tuple(tensor.placements)} is not divided evenly: expected "
            f"{box.shape} here, found {local}"
        )
    return box


def local_piece_of(tensor: Any) -> Any:
    """What this process saves of a DTensor: a `LocalPiece`; or the tensor itself, if each process has all of it."""
    box, mesh = box_of(tensor), tensor.device_mesh
    # empty where this process is not in the mesh
    places = list(zip(tensor.placements, mesh.shape, mesh.get_coordinate() or (), strict=False))
    if places and all(placement.is_replicate() or size == 1 for placement, size, _ in places):
        return tensor.to_local()
    stores = bool(places) and all(at == 0 for placement, _, at in places if placement.is_replicate())
    return LocalPiece(tensor.to_local(), tuple(tensor.shape), box if stores and box.size else None)


def with_local_pieces(state: Any) -> Any:
    """A state with a `LocalPiece` in place of each DTensor. The state itself stays as it is."""
    if is_divided(state):
        return local_piece_of(state)
    if isinstance(state, dict):
        made = copy.copy(state)  # with the versions of modules
        for name, value in state.items():
            made[name] = with_local_pieces(value)
        return made
    if type(state) in (list, tuple):
        return type(state)(with_local_pieces(value) for value in state)
    return state


def divided_like(tensor: Any, local: Any) -> Any:
    """A DTensor that is divided as another one is, with this part of it here; on the device of the other."""
    kind = sys.modules["torch.distributed.tensor"].DTensor
    return kind.from_local(
        local.to(tensor.to_local().device), tensor.device_mesh, tensor.placements, run_check=False,
        shape=tensor.shape, stride=tensor.stride(),
    )  # fmt: skip
